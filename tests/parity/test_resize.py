"""Towers at other image sizes against `interpolate_pos_encoding` of transformers, in float32."""

import copy
import dataclasses
import json

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
import torch
from flax import nnx
from PIL import Image
from tiny_llava import assert_close
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import astrollava_jax as al
from astrollava_jax.data.image import normalize
from astrollava_jax.params import merge, split
from astrollava_jax.run.convert import convert
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.load import load
from astrollava_jax.weights.resize import NEWLINE, POSITIONS, resize

SIZES = {"up": 101, "up a little": 84, "down": 42, "to one patch": 14}
"""Of a tower that was made for 70 pixels, 5 x 5 patches; 101 leave some pixels over."""

TOWERS = {"clip": (CLIPVisionConfig, "default"), "siglip": (SiglipVisionConfig, "full")}


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    """A tower of transformers, and the model around it as ours."""
    kind, strategy = TOWERS[request.param]
    text = LlamaConfig(**families.DECODER, rms_norm_eps=1e-5)
    shape = kind(**families.TOWER | {"image_size": 70})
    model = families.torch_model(text, shape, strategy)
    folder = tmp_path_factory.mktemp("towers") / request.param
    model.save_pretrained(folder)
    return model.model.vision_tower, open_model(folder)


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_a_tower_at_another_size_sees_what_that_of_transformers_sees(size, tower):
    theirs, source = tower
    resized = resize(source, size)
    vision, facts = resized.config.vision, resized.config.image_facts
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    pixels = torch.tensor(normalize(images, facts).transpose(0, 3, 1, 2))
    with torch.no_grad():
        output = theirs(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
        places = torch.zeros(1, vision.num_patches + vision.num_prefix, 32)
        # In float32 torch's own rounding is 1.1e-6 of the largest number.
        exact = copy.deepcopy(theirs.embeddings).double()
        table = exact.interpolate_pos_encoding(places, size, size)[0].numpy()
    assert_close(resized.read(POSITIONS), table, "positions", 1e-6)
    assert np.array_equal(resized.read(POSITIONS, np.s_[1:, :7]), resized.read(POSITIONS)[1:, :7])
    graphdef, _ = split(nnx.eval_shape(lambda: vision.build(nnx.Rngs(0))))
    params = load(resized, [address for address in resized.shapes if address.startswith("vision/")])
    numbers = {address.removeprefix("vision/"): array for address, array in params.items()}
    with jax.default_matmul_precision("highest"):
        found = merge(graphdef, numbers)(jnp.asarray(images), layer=-1, dtype=jnp.float32)
    assert_close(found, output.hidden_states[-1].numpy(), "hidden states")


def test_a_table_is_rounded_once_and_its_class_token_kept(tmp_path):
    written = tiny.write_hf(tmp_path, tiny_llava.torch_model(), dtype=torch.float16)
    before = written["vision_tower.vision_model.embeddings.position_embedding.weight"]
    square = before[1:].float().reshape(1, 2, 2, 32).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size=(5, 5), mode="bicubic")
    source = resize(open_model(tmp_path), 70)
    found = source.read(POSITIONS)
    assert found.dtype == np.float16 and np.array_equal(found[0], before[0])
    rounded = expected[0].permute(1, 2, 0).reshape(25, 32).half().numpy()
    # A number in the middle between two of float16 may be rounded to either.
    assert np.mean(found[1:] == rounded) > 0.99
    assert_close(found[1:], rounded, "positions", 1e-3)
    (note,) = source.notes
    assert note == (
        "the tower sees 70 pixels instead of 28: positions interpolated from 2 x 2 to 5 x 5"
    )


def test_a_size_that_leaves_the_patches_as_they_are(tmp_path):
    tiny.write_hf(tmp_path, tiny_llava.torch_model())
    source = open_model(tmp_path)
    assert resize(source, 28) is source
    resized = resize(source, 41)
    assert np.array_equal(resized.read(POSITIONS), source.read(POSITIONS))
    assert resized.notes[0].endswith("instead of 28: its 2 x 2 positions stay")
    assert resized.layout is None and resized.config.vision.image_size == 41


def test_the_way_to_a_size_does_not_matter(tmp_path):
    tiny.write_hf(tmp_path, tiny_llava.torch_model(), dtype=torch.float32)
    source = open_model(tmp_path)
    by_way, straight = resize(resize(source, 98), 42), resize(source, 42)
    assert np.array_equal(by_way.read(POSITIONS), straight.read(POSITIONS))
    assert by_way.notes == straight.notes
    assert resize(resize(source, 98), 28).read(POSITIONS).shape == (5, 32)


def test_size_and_grid_go_together(tmp_path):
    tiny.write_hf(tmp_path, tiny_llava.torch_model())
    source = open_model(tmp_path)
    both = resize(source, 42, ((42, 84), (84, 42)))
    assert (both.config.image_facts.size, both.config.grid) == (42, ((42, 84), (84, 42)))
    assert both.missing == (NEWLINE,)
    assert resize(resize(source, grid=((28, 56),)), 42, ((42, 84),)).missing == (NEWLINE,)
    with pytest.raises(ValueError, match=r"multiples of the tower's 42 pixels, found \(28, 56\)"):
        resize(source, 42, ((28, 56), (42, 84)))
    with pytest.raises(ValueError, match="multiples of the tower's 42 pixels"):
        resize(resize(source, grid=((28, 56),)), 42)
    with pytest.raises(ValueError, match="image_size 13 must be at least patch_size 14"):
        resize(source, 13)


@pytest.mark.parametrize("made", ["hf", "llava", "parts", "orbax"])
def test_an_export_at_another_size_answers_as_in_transformers(made, tmp_path, capsys):
    model = tiny_llava.torch_model()
    start, parts = tmp_path / "in", {}
    if made == "hf":
        tiny.write_hf(start, model, dtype=torch.float32)
    elif made == "llava":
        tiny.write_original(start, model, dtype=torch.float32)
    elif made == "parts":
        tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
        start, parts = None, {"vision": tmp_path / "clip", "llm": tmp_path / "llm"}
    else:
        tiny.write_hf(tmp_path / "hf", model, dtype=torch.float32)
        convert(tmp_path / "hf", start, "orbax", image_size=70)
    convert(start, tmp_path / "out", "hf", image_size=42, **parts)
    assert "pixels instead of" in capsys.readouterr().out
    again, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8))
    inputs = processor(images=picture, text="a <image> b", return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (42, 42)
    assert (inputs["input_ids"] == tiny.IMAGE_ID).sum() == 9
    with torch.no_grad():
        expected = again.eval()(**inputs).logits.numpy()
    loaded = al.load_model(str(tmp_path / "out"), dtype="float32")
    assert_close(loaded.logits([picture], ["a <image> b"]), expected, "logits")
    if made == "orbax":
        return  # interpolated twice: the first result is what the directory holds
    with torch.no_grad():  # the numbers that it came from, at the new size
        vision = dict(interpolate_pos_encoding=True)
        before = model.model.vision_tower(
            inputs["pixel_values"], **vision, output_hidden_states=True
        )
        after = again.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    assert_close(after.hidden_states[-2], before.hidden_states[-2], "hidden states")


def test_the_original_layout_names_no_tower_that_sees_another_size(tmp_path):
    """LLaVA would take the named tower, with its size, from the hub."""
    tiny.write_original(tmp_path / "in", tiny_llava.torch_model())
    convert(tmp_path / "in", tmp_path / "out", "llava", image_size=42)
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tree["mm_vision_tower"], tree["mm_vision_config"]["image_size"]) == ("embedded", 42)
    opened, wanted = open_model(tmp_path / "out"), tiny_llava.our_config()
    assert opened.config == dataclasses.replace(
        wanted, vision=dataclasses.replace(wanted.vision, image_size=42)
    )
