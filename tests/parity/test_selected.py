"""What LLaVA reads of its tower: any layer, with the class token or without, in every layout."""

import json

import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
import torch
from PIL import Image
from tiny_llava import assert_close
from transformers import AutoProcessor, LlavaForConditionalGeneration

import astrollava_jax as al
from astrollava_jax.run.convert import convert

CASES = {"the last": (-1, "patch", "default"), "one from below": (1, "patch", "default"),
         "the third": (3, "patch", "default"), "a class token": (-2, "cls_patch", "full"),
}  # fmt: skip


def tree(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "feature", "strategy"), CASES.values(), ids=list(CASES))
def test_the_choice_goes_through_both_layouts_and_back(layer, feature, strategy, tmp_path):
    tiny.write_hf(tmp_path / "in", tiny_llava.torch_model(), dtype=torch.float32)
    choice = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    tiny.write_json(tmp_path / "in", "config.json", tree(tmp_path / "in") | choice)
    convert(tmp_path / "in", tmp_path / "llava", "llava")
    original = tree(tmp_path / "llava")
    assert original["mm_vision_select_layer"] == layer
    assert original["mm_vision_select_feature"] == feature
    convert(tmp_path / "llava", tmp_path / "hf", "hf")
    assert tree(tmp_path / "hf") | choice == tree(tmp_path / "hf")

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(images=picture, text="a <image> b", return_tensors="pt")
    assert (inputs["input_ids"] == tiny.IMAGE_ID).sum() == 4 + (feature == "cls_patch")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits.numpy()
    ours = al.load_model(str(tmp_path / "llava"), dtype="float32")
    assert_close(ours.logits([picture], ["a <image> b"]), expected, "logits")
