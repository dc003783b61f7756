"""Both stages on real pictures and a real language model, where both are there.

ASTROLLAVA_TEST_STELLARIUM names Stellarium's `nebulae/default` folder and ASTROLLAVA_TEST_SMOLLM2 a
directory of SmolLM2-135M-Instruct; docs/real_input.md says how to have them. Run with `-m real`.
"""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)

import data_prep.stellarium as stellarium
from astrollava_jax import files
from astrollava_jax.config import load
from astrollava_jax.data import example
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.quickstart import recipe
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.model import load_model
from astrollava_jax.run.train import train

TEXTURES = os.environ.get("ASTROLLAVA_TEST_STELLARIUM", "")
DECODER = os.environ.get("ASTROLLAVA_TEST_SMOLLM2", "")
CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (TEXTURES and DECODER), reason="Stellarium and SmolLM2 are not named"),
]


def tower(folder: str) -> None:
    """A random tower of the quickstart's shape: no real one is at hand."""
    torch.manual_seed(0)
    shape = {k: v for k, v in recipe.initial_config()["vision_config"].items() if k != "model_type"}
    CLIPVisionModel(CLIPVisionConfig(**shape)).save_pretrained(folder)
    files.write_json(files.join(folder, "preprocessor_config.json"), recipe.image_processor())


def test_both_stages_and_back_to_pytorch(tmp_path):
    where = {name: str(tmp_path / name) for name in ("sky", "tower", "one", "two", "export")}
    assert stellarium.main(["--textures", TEXTURES, "--out", where["sky"]]) == 0
    tower(where["tower"])
    train_set, held_out = (files.join(where["sky"], name) for name in ("train", "heldout"))
    common = {"data.0.records": train_set, "evaluate.records": held_out, "batch.samples": "4"}
    common |= {"steps": "2", "evaluate.every_steps": "2", "workers": "0"}
    first = {"out": where["one"], "init.vision": where["tower"], "init.llm": DECODER}
    one = load_run("stellarium_stage1.yaml", common | first | {"epochs": "null"})
    train(one)
    train(load_run("stellarium_stage2.yaml", common | {"out": where["two"], "init.model": one.out}))
    convert(where["two"], where["export"], "hf")

    source = TFRecordSource(held_out)
    shown = example.decode(source[0]).images[0]
    prompt = "<image>\nWhat is this?"
    ours = load_model(where["export"], "float32").logits([shown], [prompt])
    processor = AutoProcessor.from_pretrained(where["export"])
    theirs = LlavaForConditionalGeneration.from_pretrained(where["export"], dtype=torch.float32)
    inputs = processor(images=picture(shown), text=prompt, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.eval()(**inputs).logits.numpy()
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def load_run(name: str, overrides: dict[str, str]) -> RunConfig:
    return load(RunConfig, os.path.join(CONFIGS, name), overrides)


def picture(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")
