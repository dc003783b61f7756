"""The input of a PyTorch program: transformers' LlavaProcessor in a DataLoader's workers.

Written as its users write it: a data set that opens files, and a collator that calls the processor
on a batch. Only this module imports torch.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from transformers import AutoTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from astrollava_jax.bench.input_job import PATCH, Job
from astrollava_jax.models.clip import MEAN, STD

BATCH = 16
"""Samples per device, as in LLaVA's stage 2; its stage 1 has 32."""


class Captioned:
    """The photographs and their captions, over and over."""

    def __init__(self, job: Job, length: int):
        self._job = job
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Any]:
        place = number % len(self._job.photographs)
        image = Image.open(self._job.photographs[place]).convert("RGB")
        return {"image": image, "text": f"<image>{self._job.captions[place]}\n"}


class Collator:
    """Makes padded tensors of some samples, pictures normalised in float32."""

    def __init__(self, job: Job):
        self.processor: Any = processor(job)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Any:
        """The batch of the samples."""
        batch = self.processor(
            images=[sample["image"] for sample in samples],
            text=[sample["text"] for sample in samples],
            padding=True,
            return_tensors="pt",
        )
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}


def processor(job: Job) -> LlavaProcessor:
    """LLaVA-1.5's, on Pillow: the only one of transformers' whose pixels are the original's."""
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": job.side},
        "crop_size": {"height": job.side, "width": job.side},
    }
    made = (
        LlavaImageProcessorPil(do_pad=True, **sizes)
        if job.mode == "pad"
        else CLIPImageProcessorPil(**sizes)
    )
    return LlavaProcessor(
        made,
        AutoTokenizer.from_pretrained(job.tokenizer_folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


class Theirs:
    """Batches, without end, as far as anybody takes them."""

    def __init__(self, job: Job, workers: int, images: int):
        self._loader = torch.utils.data.DataLoader(
            Captioned(job, images),  # pyright: ignore[reportArgumentType]
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=Collator(job),
            multiprocessing_context="spawn" if workers else None,
        )
        self._batches = iter(self._loader)

    def take(self) -> int:
        """Takes a batch; how many pictures it holds."""
        return len(next(self._batches)["pixel_values"])

    def pixels(self, count: int) -> UInt8[np.ndarray, "count h w 3"]:
        """Of the first photographs, by the next batches, back from floats."""
        taken = [next(self._batches)["pixel_values"] for _ in range(-(-count // BATCH))]
        values = np.concatenate(list(itertools.chain(taken)))[:count]
        scaled = np.moveaxis(values, 1, -1) * np.array(STD) + np.array(MEAN)
        return np.round(255 * scaled).astype(np.uint8)

    def close(self) -> None:
        """Ends the workers."""
        del self._batches
