"""LLaVA-NeXT's directories, and originals on other decoders: read, converted, and answered with."""

import io
import json

import families
import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
import torch
from PIL import Image
from tiny_llava import GRID, IMAGE_ID, assert_close
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

import astrollava_jax as al
from astrollava_jax.data.image import normalize
from astrollava_jax.data.tiles import layout_of, prepare_tiles
from astrollava_jax.weights import foreign_config
from astrollava_jax.weights.directory import open_model, recognise
from astrollava_jax.weights.save import save

SIZES = {"wide": (40, 120), "tall": (130, 50)}
"""Of pictures, height and width."""

TEXT = "a <image> b"


def mistral():
    return MistralConfig(
        **families.DECODER, sliding_window=None, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


def qwen():
    return Qwen2Config(
        **families.DECODER, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


ORIGINALS = {
    "llava_llama, next": lambda: tiny_llava.torch_next(),
    "llava_mistral, next": lambda: tiny_llava.torch_next(text=mistral()),
    "llava_qwen, next": lambda: tiny_llava.torch_next(text=qwen()),
    "llava_mistral": lambda: families.torch_model(mistral()),
    "llava_qwen": lambda: families.torch_model(qwen()),
}


@pytest.fixture(scope="module", params=ORIGINALS)
def original(request, tmp_path_factory):
    """A directory in the original layout: its model, its path and what it holds."""
    model = ORIGINALS[request.param]()
    folder = tmp_path_factory.mktemp("original") / "in"
    return model, folder, tiny.write_original(folder, model, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A directory of LLaVA-NeXT as llava-hf has it."""
    folder = tmp_path_factory.mktemp("hf") / "in"
    return folder, tiny.write_hf(folder, tiny_llava.torch_next(), dtype=torch.float32)


def beside(folder):
    """The files that are not weights."""
    weights = ("model", "pytorch_model", "checksums.json")
    paths = (path for path in folder.iterdir() if not path.name.startswith(weights))
    return {path.name: path.read_bytes() for path in paths}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def picture(name: str) -> bytes:
    height, width = SIZES[name]
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


def assert_transformers_answers_as(folder, exported) -> None:
    """Compares logits of an export there with ours of any directory, for both pictures."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(exported)
    ours = al.load_model(str(folder), dtype="float32")
    pictures = [picture(name) for name in SIZES]
    found = ours.logits(pictures, [TEXT] * len(pictures))
    facts, following = ours.config.image_facts, ours.config.grid is not None
    kind = LlavaNextForConditionalGeneration if following else LlavaForConditionalGeneration
    assert type(model) is kind and ours.image_mode == ("anyres" if following else "pad")
    for row, content in enumerate(pictures):
        image = Image.open(io.BytesIO(content))
        inputs = processor(images=image, text=TEXT, return_tensors="pt")
        tiles = normalize(prepare_tiles(content, ours.image_mode, facts), facts)
        pixels = inputs["pixel_values"].numpy().reshape(-1, 3, 28, 28).transpose(0, 2, 3, 1)
        assert pixels.shape == tiles.shape and np.abs(pixels - tiles).max() < 1e-6
        count = len(layout_of(content, ours.image_mode, facts).features)
        assert (inputs["input_ids"] == IMAGE_ID).sum() == count
        with torch.no_grad():
            expected = model.eval()(**inputs).logits[0].numpy()
        assert_close(found[row, : len(expected)], expected, f"logits {row}")


def test_an_original_is_read_and_comes_back_to_the_byte(original, tmp_path):
    model, folder, written = original
    assert recognise(folder).name == "llava"
    source, text = open_model(folder), model.config.text_config
    following = hasattr(model.config, "image_grid_pinpoints")
    assert source.config.grid == (GRID if following else None)
    assert source.image_mode == ("anyres" if following else "pad")
    llm = source.config.llm
    assert (llm.rope_theta, llm.norm_eps) == (
        text.rope_parameters["rope_theta"], text.rms_norm_eps
    )  # fmt: skip
    assert (llm.qkv_bias, llm.window) == (text.model_type == "qwen2", None)
    save(tmp_path / "ours", "orbax", source)
    save(tmp_path / "again", "llava", open_model(tmp_path / "ours"))
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    assert beside(tmp_path / "again") == beside(folder)


def test_an_original_goes_to_hf_and_back(original, tmp_path):
    _, folder, written = original
    save(tmp_path / "hf", "hf", open_model(folder))
    assert recognise(tmp_path / "hf").name == "hf"
    there = open_model(tmp_path / "hf")
    assert there.config == open_model(folder).config
    save(tmp_path / "again", "llava", there)
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    before, after = config_of(folder), config_of(tmp_path / "again")
    same = (
        "model_type", "architectures", "image_aspect_ratio", "mm_hidden_size", "rope_theta",
        "mm_projector_type", "vocab_size", "num_key_value_heads", "tie_word_embeddings",
    )  # fmt: skip
    same += tuple(key for key in ("image_grid_pinpoints", "sliding_window") if key in before)
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["mm_patch_merge_type"] == before.get("mm_patch_merge_type", "flat")
    assert open_model(tmp_path / "again").config == open_model(folder).config


def test_the_export_of_an_original_answers_as_in_transformers(original, tmp_path):
    _, folder, _ = original
    save(tmp_path / "hf", "hf", open_model(folder))
    assert_transformers_answers_as(folder, tmp_path / "hf")


def test_a_directory_as_the_scripts_of_llava_leave_it(monkeypatch, tmp_path):
    """Its tower is embedded and only named, and its canvases are a text: a command's argument."""
    model = tiny_llava.torch_next()
    tiny.write_original(tmp_path, model)
    config = config_of(tmp_path) | {"image_grid_pinpoints": str([(w, h) for h, w in GRID])}
    named = {"some/tower": config.pop("mm_vision_config")}
    tiny.write_json(tmp_path, "config.json", config)
    monkeypatch.setattr(foreign_config, "PUBLISHED_TOWERS", named)
    assert open_model(tmp_path).config == tiny_llava.next_config()
    # Of a model that cuts no tiles they are left over, whatever they say.
    pad = {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"}
    tiny.write_original(tmp_path / "pad", tiny_llava.torch_model())
    left = {"image_grid_pinpoints": "(1x1),...,(6x6)"}
    config = config_of(tmp_path / "pad")
    tiny.write_json(tmp_path / "pad", "config.json", config | pad | left)
    assert open_model(tmp_path / "pad").config == tiny_llava.our_config()
    tiny.write_original(tmp_path / "text", model)
    tiny.write_json(tmp_path / "text", "config.json", config_of(tmp_path / "text") | left)
    with pytest.raises(ValueError, match=r"expected a list of pairs .* found '\(1x1\),"):
        open_model(tmp_path / "text")


def test_a_directory_of_next_is_read_and_comes_back_to_the_byte(hf, tmp_path):
    folder, written = hf
    assert recognise(folder).name == "hf"
    source = open_model(folder)
    assert source.config == tiny_llava.next_config() and source.image_mode == "anyres"
    expected = tiny_llava.by_address(dict(tiny_llava.torch_next().named_parameters()))
    for address, array in expected.items():
        assert np.array_equal(source.read(address), array), address
    save(tmp_path / "ours", "orbax", source)
    save(tmp_path / "again", "hf", open_model(tmp_path / "ours"))
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    assert beside(tmp_path / "again") == beside(folder)


@pytest.mark.parametrize("names", [tiny.TO_4_52, ()], ids=["4.52", "5.x"])
def test_every_spelling_gives_the_same_line_end(names, hf, tmp_path):
    tiny.write_hf(tmp_path, tiny_llava.torch_next(), dtype=torch.float32, names=names)
    for address in ("image_newline/embedding", "vision/positions/embedding"):
        found = open_model(tmp_path).read(address)
        assert np.array_equal(found, open_model(hf[0]).read(address))


def test_a_directory_of_next_goes_to_the_original_and_back(hf, tmp_path):
    folder, written = hf
    save(tmp_path / "llava", "llava", open_model(folder))
    config = config_of(tmp_path / "llava")
    assert config | {
        "model_type": "llava_llama", "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[width, height] for height, width in GRID],
    } == config  # fmt: skip
    newline = tiny.read_all(tmp_path / "llava")["model.image_newline"]
    assert torch.equal(newline, written["image_newline"])
    save(tmp_path / "hf", "hf", open_model(tmp_path / "llava"))
    tables = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    found, expected = tiny.read_all(tmp_path / "hf"), dict(written)
    for table in tables:  # the original has no rows for <image> and the pad
        found[table], expected[table] = (t[table][: tiny.WORDS] for t in (found, expected))
    tiny.assert_same(found, expected)
    assert_transformers_answers_as(tmp_path / "llava", tmp_path / "hf")


def test_transformers_answers_to_its_own_directory_as_we_do(hf):
    assert_transformers_answers_as(hf[0], hf[0])
