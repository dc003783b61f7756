"""Exports against stock transformers: it loads them whole, sees, reads and answers as we do."""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tiny_directories as tiny
import tiny_llava
import torch
from PIL import Image
from tiny_llava import IMAGE_ID, assert_close
from transformers import AutoProcessor, LlavaForConditionalGeneration

from astrollava_jax.batch import Batch
from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.image import prepare
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.params import merge, split
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.load import load
from astrollava_jax.weights.save import save

PATCHES = 4


def reload(folder) -> LlavaForConditionalGeneration:
    """The export in transformers; no tensor is missing, left over or of another shape."""
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def question(words: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Ids with a picture of four patches among them, and the picture's pixels."""
    rng = np.random.default_rng(3)
    ids = rng.integers(3, 60, (1, words + PATCHES)).astype(np.int32)
    ids[0, 2 : 2 + PATCHES] = IMAGE_ID
    return ids, rng.integers(0, 256, (1, 1, 28, 28, 3)).astype(np.uint8)


def normal(images: np.ndarray, config: LlavaConfig) -> np.ndarray:
    """Pixels as transformers gives them to the tower."""
    mean, std = np.array(config.vision.pixel_mean), np.array(config.vision.pixel_std)
    return ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def their_logits(model: LlavaForConditionalGeneration, config: LlavaConfig) -> np.ndarray:
    ids, images = question()
    pixels = torch.tensor(normal(images[:, 0], config))
    with torch.no_grad():
        tokens = torch.tensor(ids, dtype=torch.long)
        return model(input_ids=tokens, pixel_values=pixels).logits.numpy()


def our_logits(params: dict[str, jax.Array], config: LlavaConfig) -> np.ndarray:
    ids, images = question()
    feature_index = np.where(ids == IMAGE_ID, np.cumsum(ids == IMAGE_ID) - 1, -1)
    unused = np.zeros((1, 1), np.int32)
    batch = Batch(
        tokens=ids, targets=ids, learned_index=unused, learned_sample=unused,
        segment_ids=np.ones_like(ids), positions=np.arange(ids.size, dtype=np.int32)[None],
        images=images, feature_index=feature_index.astype(np.int32),
    ).map(jnp.asarray)  # fmt: skip
    graphdef, _ = split(config.abstract())
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(graphdef, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch):
    model = merge(graphdef, params)
    return model.logits(model(batch, dtype=jnp.float32))


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request):
    return tiny_llava.torch_model(tie=request.param)


def assert_both_agree(folder) -> None:
    source = open_model(folder)
    params = load(source, source.shapes, dtypes="float32")
    theirs = their_logits(reload(folder), source.config)
    assert_close(our_logits(params, source.config), theirs, "logits")


@pytest.mark.parametrize("made", ["hf", "llava"])
def test_an_export_gives_the_logits_of_the_model_it_came_from(model, made, tmp_path):
    if made == "hf":
        tiny.write_hf(tmp_path / "in", model, dtype=torch.float32)
    else:
        tiny.write_original(tmp_path / "in", model, dtype=torch.float32)
    source = open_model(tmp_path / "in")
    save(tmp_path / "ours", "orbax", source)
    save(tmp_path / "out", "hf", open_model(tmp_path / "ours"))
    expected = their_logits(model, source.config)[..., : tiny.WORDS]
    found = their_logits(reload(tmp_path / "out"), source.config)[..., : tiny.WORDS]
    assert np.array_equal(found, expected)
    assert_both_agree(tmp_path / "out")


def test_a_trained_export_gives_the_trained_logits(model, tmp_path):
    tiny.write_hf(tmp_path / "in", model, dtype=torch.float16)
    source = open_model(tmp_path / "in")
    before = load(source, source.shapes, dtypes="float32")
    trained = {a: 1.25 * x for a, x in before.items() if not a.startswith("vision/")}
    save(tmp_path / "out", "hf", source, trained, template="vicuna_v1", image_mode="pad")
    assert_both_agree(tmp_path / "out")
    found = their_logits(reload(tmp_path / "out"), source.config)
    assert np.abs(found - their_logits(model, source.config)).max() > 0.1


def test_joined_parts_are_exported_whole(tmp_path):
    model = tiny_llava.torch_model()
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    source = join(tmp_path / "clip", tmp_path / "llm")
    numbers = tiny_llava.by_address(dict(model.named_parameters()))
    save(tmp_path / "out", "hf", source, {a: numbers[a] for a in source.missing})
    expected = their_logits(model, source.config)[..., : tiny.WORDS]
    found = their_logits(reload(tmp_path / "out"), source.config)[..., : tiny.WORDS]
    assert np.array_equal(found, expected)
    assert_both_agree(tmp_path / "out")


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v1", "plain", "llama_2"])
def test_the_processor_sees_and_reads_as_training_did(mode, template, tmp_path):
    tiny.write_original(tmp_path / "in", tiny_llava.torch_model())
    source = open_model(tmp_path / "in")
    save(tmp_path / "out", "hf", source, {"llm/norm/scale": np.ones(48)}, template=template,
         image_mode=mode)  # fmt: skip
    again = open_model(tmp_path / "out")
    assert (again.template, again.image_mode) == (template, mode)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8))
    image.save(tmp_path / "image.png")
    content = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    found = processor(images=image, text=text, return_tensors="np")
    turns = [Turn("human", "<image>\nwhat is this?")]
    ids = chat.prompt(turns, template, again.tokenizer, 1)
    place = ids.index(IMAGE_ID)
    expanded = [*ids[:place], *[IMAGE_ID] * PATCHES, *ids[place + 1 :]]
    assert found["input_ids"][0].tolist() == expanded
    pixels = prepare((tmp_path / "image.png").read_bytes(), mode, again.config.image_facts)
    expected = normal(pixels[None], again.config)
    assert np.abs(found["pixel_values"] - expected).max() < 1e-6


def test_an_untrained_export_answers_with_the_same_files(tmp_path):
    tiny.write_hf(tmp_path / "in", tiny_llava.torch_model())
    save(tmp_path / "out", "hf", open_model(tmp_path / "in"))
    message = [{"role": "user", "content": "what?"}]
    texts = [
        AutoProcessor.from_pretrained(tmp_path / name).apply_chat_template(message)
        for name in ("in", "out")
    ]
    assert texts[0] == texts[1] == "USER: what? "


def test_the_original_layout_says_what_llava_asks_for(tmp_path):
    tiny.write_hf(tmp_path / "in", tiny_llava.torch_model())
    save(tmp_path / "out", "llava", open_model(tmp_path / "in"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config | {
        "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32,
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "vocab_size": 61,
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "pad_token_id": 0,
        "image_aspect_ratio": "square", "torch_dtype": "float16", "max_position_embeddings": 256,
    } == config  # fmt: skip
    assert open_model(tmp_path / "out").config == open_model(tmp_path / "in").config


def test_a_sentencepiece_vocabulary_of_llama_2(tmp_path):
    """An original directory with `tokenizer.model` alone, as liuhaotian/llava-v1.5-7b has it."""
    where = os.environ.get("ASTROLLAVA_TEST_TOKENIZERS")
    if where is None:
        pytest.skip("ASTROLLAVA_TEST_TOKENIZERS names no folder of tokenizers")
    folder = tmp_path / "in"
    tensors = tiny.write_original(folder, tiny_llava.torch_model(), binary=False, shards=1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(32000, 48, generator=torch.Generator().manual_seed(0)).half()
    for path in folder.glob("*[mt]o[dk]e*"):
        path.unlink()
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 32000}
    tiny.write_json(folder, "config.json", config)
    (folder / "tokenizer.model").write_bytes((Path(where) / "llama2.model").read_bytes())
    tiny.write_json(folder, "tokenizer_config.json", {"legacy": False, "pad_token": None})
    source = open_model(folder)
    assert (source.words, source.config.llm.vocab_size) == (32000, 32064)
    save(tmp_path / "hf", "hf", source)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    # From the docstring of vLLM's multimodal processing; LLaVA's tokens around an image.
    golden = [1, 3148, 1001, 29901, 29871, 32000, 29871, 13, 5618, 29915, 29879, 278, 2793, 310,
              278, 1967, 29973, 13, 22933, 9047, 13566, 29901]  # fmt: skip
    text = "USER: <image>\nWhat's the content of the image?\nASSISTANT:"
    assert processor.tokenizer(text)["input_ids"] == golden
    assert processor.tokenizer.pad_token_id == 32001
    save(tmp_path / "ours", "orbax", open_model(tmp_path / "hf"))
    save(tmp_path / "llava", "llava", open_model(tmp_path / "ours"))
    tiny.assert_same(tiny.read_all(tmp_path / "llava"), tensors)
    save(tmp_path / "same", "llava", source, {"llm/norm/scale": np.ones(48)})
    written = json.loads((tmp_path / "same" / "tokenizer_config.json").read_text())
    assert (written["tokenizer_class"], written["legacy"]) == ("LlamaTokenizer", False)
    assert (tmp_path / "same" / "tokenizer.model").exists()
