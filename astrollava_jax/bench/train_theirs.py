"""Steps of training by PyTorch and transformers' LLaVA, as its users write them.

    python -m astrollava_jax.bench.train_theirs JOB padded|packed [--compile] [--platform gpu]

padded    samples padded to the longest of their batch, by transformers' own collator
packed    the very rows of our program, with positions and a mask that keep samples apart

Both with gradient checkpointing, SDPA and AdamW, as the recipes have it, the loss being the mean
over all learned tokens of a step; what is frozen gets no gradient and is not computed again. In
bfloat16 by autocast: weights that train are float32, all others bfloat16. Workers make batches
ahead, as many as our program has. Only this module imports torch.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from PIL import Image
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, LlavaForConditionalGeneration
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from astrollava_jax import files
from astrollava_jax.batch import Batch
from astrollava_jax.bench.train_job import RATES, SHAPES, Job, in_parts, labels
from astrollava_jax.bench.turns import Facts, asked
from astrollava_jax.models.clip import MEAN, STD

Tensors = dict[str, torch.Tensor]
Steps = Iterator[list[Tensors]]
"""The micro-batches of each step."""


class Samples:
    """What is learned, a sample at a time: words by their ids, and a picture as the tower's floats.

    The words of a run are tokenised before it, as LLaVA's own data set does for its collator.
    """

    def __init__(self, job: Job, plan: Any):
        self._job = job
        side = SHAPES[job.shape].size.image
        self._processor: Any = LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        self._places = list(
            zip(*(plan[f"sample_{name}"] for name in ("record", "step", "row", "start", "tokens")))
        )
        self._tokens, self._features = plan["tokens"], plan["feature_index"]
        self._labels = np.stack(
            [labels(*step) for step in zip(plan["targets"], plan["learned_index"])]
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record, step, row, start, length = self._places[number]
        place = step, row, slice(start, start + length)
        sample = {"input_ids": self._tokens[place].tolist(), "labels": self._labels[place].tolist()}
        if (self._features[place] >= 0).any():
            image = Image.open(self._job.photograph(record)).convert("RGB")
            sample["pixel_values"] = self._processor(image, return_tensors="pt")["pixel_values"]
        return sample


class Collator:
    """transformers' own for words; pictures one after the other."""

    def __init__(self, job: Job):
        tokenizer = AutoTokenizer.from_pretrained(job.model)
        self._words = DataCollatorForSeq2Seq(tokenizer, padding=True)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Tensors:
        """The batch of the samples."""
        pixels = [sample.pop("pixel_values") for sample in samples if "pixel_values" in sample]
        batch = dict(self._words(samples))
        return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


class Rows:
    """Our rows, as many at a time as we compute at a time."""

    def __init__(self, job: Job, plan: Any):
        self._plan = {name: plan[name] for name in Batch._fields}
        rows = self._plan["tokens"].shape[1]
        self._taken = job.rows_per_device or rows
        self._parts = -(-rows // self._taken)
        self._patches = SHAPES[job.shape].size.patches

    def __len__(self) -> int:
        return len(self._plan["tokens"]) * self._parts

    def __getitem__(self, number: int) -> Tensors:
        step, part = divmod(number, self._parts)
        here = step, slice(part * self._taken, (part + 1) * self._taken)
        return _rows({name: field[here] for name, field in self._plan.items()}, self._patches)


def padded(job: Job, plan: Any) -> Steps:
    """Batches of samples, each padded to its longest."""
    numbers = np.arange(len(plan["sample_step"]))
    steps = [numbers[plan["sample_step"] == step] for step in range(job.steps)]
    parts = [in_parts(step.tolist(), job.micro) for step in steps]
    batches = [batch for step in parts for batch in step]
    loader = _loader(job, Samples(job, plan), batch_sampler=batches, collate_fn=Collator(job))
    return (list(itertools.islice(loader, len(step))) for step in parts)


def packed(job: Job, plan: Any) -> Steps:
    """The rows of each step."""
    rows = Rows(job, plan)
    loader, parts = _loader(job, rows, batch_size=None), len(rows) // job.steps
    return (list(itertools.islice(loader, parts)) for _ in range(job.steps))


def _loader(job: Job, samples: Any, **how: Any) -> Iterator[Tensors]:
    """PyTorch's own; its workers, if it has some, begin at once."""
    context = "spawn" if job.workers else None
    loader = torch.utils.data.DataLoader
    return iter(loader(samples, num_workers=job.workers, multiprocessing_context=context, **how))


def _rows(fields: dict[str, np.ndarray], patches: int) -> Tensors:
    batch = {
        "input_ids": torch.from_numpy(fields["tokens"]).long(),
        "position_ids": torch.from_numpy(fields["positions"]).long(),
        _SEGMENTS: torch.from_numpy(fields["segment_ids"]),
        "labels": torch.from_numpy(labels(fields["targets"], fields["learned_index"])),
    }
    images = _pictures(fields["images"], fields["feature_index"], patches)
    return batch | ({"pixel_values": images} if len(images) else {})


def _apart(segments: torch.Tensor) -> torch.Tensor:
    """Which key each query sees: those of its own sample that are not later."""
    same = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=segments.device).tril()
    return (same & causal)[:, None]


def _pictures(
    images: UInt8[np.ndarray, "R I h w 3"], features: Int32[np.ndarray, "R T"], patches: int
) -> torch.Tensor:
    """The pictures that rows hold, normalised, in the order of their places."""
    counts = (features.max(axis=1) + 1) // patches
    shown = np.concatenate([row[:count] for row, count in zip(images, counts)])
    values = (torch.from_numpy(shown).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2).contiguous()


LAYOUTS = {"padded": padded, "packed": packed}

_SEGMENTS = "segment_ids"
"""Of a batch of rows: which sample each position belongs to, of which the device makes the mask."""


class Trainer:
    """A model, and the loop that trains it.

    Args:
        job: what is trained.
        steps: what it learns of.
        platform: where JAX computes.
        compiled: whether by `torch.compile`.

    Raises:
        ValueError: if PyTorch does not compute there.
    """

    def __init__(self, job: Job, steps: Steps, platform: str, compiled: bool):
        self._steps = steps
        self._lower = job.precision == "bfloat16"
        self.device = torch.device(device_of(platform))
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in the tower too
        # As the files have it, and made wide or narrow on the device: processors take a minute.
        model: Any = LlavaForConditionalGeneration.from_pretrained(job.model, dtype="auto")
        model = model.to(self.device)
        # Of the decoder alone: of the whole model, some releases would compute the frozen tower a
        # second time and learn through it, for nothing.
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = []
        for name, value in model.named_parameters():
            learns = "projector" in name or (job.stage == 2 and "vision" not in name)
            value.requires_grad_(learns)
            value.data = value.data.bfloat16() if self._lower and not learns else value.data.float()
            if learns:
                trained.append(value)
        self.model = model.train()
        self.trained = sum(value.numel() for value in trained)
        self.optimizer = torch.optim.AdamW(
            trained, lr=RATES[job.stage], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
        )
        self._call: Any = torch.compile(self.model) if compiled else self.model

    def step(self) -> float:
        """Takes one step; its loss.

        Raises:
            ValueError: if the device has not the memory.
        """
        try:
            return self._step()
        except torch.OutOfMemoryError as error:
            raise ValueError(
                "PyTorch found no memory on the device; fewer samples (--micro) or rows "
                f"(--rows-per-device) at a time take less: {str(error).splitlines()[0]}"
            ) from error

    def _step(self) -> float:
        batches = next(self._steps)
        learned = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            batch = {name: value.to(self.device) for name, value in batch.items()}
            if _SEGMENTS in batch:
                batch["attention_mask"] = _apart(batch.pop(_SEGMENTS))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._lower):
                # As transformers' Trainer does, so that micro-batches make the mean of the step.
                loss = self._call(**batch, num_items_in_batch=learned, use_cache=False).loss
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)

    def device_bytes(self) -> int:
        """The most that the device has held; 0 on a processor."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0


def device_of(platform: str) -> str:
    """PyTorch's name of the device on which JAX computes.

    Raises:
        ValueError: if PyTorch does not compute there.
    """
    if platform == "cpu":
        return "cpu"
    if platform == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise ValueError(
        f"JAX computes on a {platform.upper()}, and this PyTorch ({torch.__version__}) does not: "
        "install one that does, or set JAX_PLATFORMS=cpu to compare both on the processor"
    )


def main() -> None:
    """Gets the model ready, and takes steps as it is asked."""
    parser = argparse.ArgumentParser(prog="python -m astrollava_jax.bench.train_theirs")
    parser.add_argument("job")
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--platform", default="cpu")
    arguments = parser.parse_args()
    with asked() as answer:
        job = Job.read(arguments.job)
        torch.set_num_threads(job.threads)
        with files.open_read(job.plan) as handle:
            plan = dict(np.load(handle))
        steps = LAYOUTS[arguments.layout](job, plan)
        trainer = Trainer(job, steps, arguments.platform, arguments.compile)
        facts: Facts = {
            "trained": trainer.trained,
            "threads": torch.get_num_threads(),
            "attention": trainer.model.config.text_config._attn_implementation,
        }
        answer(facts, trainer.step, trainer.device_bytes)


if __name__ == "__main__":
    main()
