"""The towers that LLaVAs are built on, in their published shapes, joined to a small decoder.

The directories have the config keys and the names and shapes of the real ones, both halves of a
CLIP; their numbers are zeros that take no room on a disk. Names and shapes are transformers' own.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tiny_directories as tiny
import tiny_llava
import torch
from flax import nnx
from published import write_sparse
from tiny_llava import assert_close
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from astrollava_jax.data.image import normalize
from astrollava_jax.params import merge, split
from astrollava_jax.weights.directory import join
from astrollava_jax.weights.load import load


class Published(NamedTuple):
    """A tower: the kind of its file, the keys of both halves, and what is known of it."""

    kind: str
    vision: dict[str, Any]
    text: dict[str, Any]
    size: int
    tokens: int
    """Per image: the patches, without the class token that a CLIP has."""
    millions: int
    """Parameters of its tower, the pooling head of a SigLIP with them."""


def clip(
    width: int, layers: int, patch: int, text_width: int, *, tokens: int, millions: int
) -> Published:
    """One of CLIP's: heads of 64, blocks four times as wide, pictures of 224."""

    def half(width: int) -> dict[str, Any]:
        return {
            "hidden_size": width, "intermediate_size": 4 * width,
            "num_attention_heads": width // 64, "projection_dim": text_width,
        }  # fmt: skip

    vision = {
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "dropout": 0.0, "image_size": 224,
        "num_hidden_layers": layers, "patch_size": patch,
    }  # fmt: skip
    return Published("clip", vision | half(width), half(text_width), 224, tokens, millions)


TOWERS = {
    "openai/clip-vit-base-patch16": clip(768, 12, 16, 512, tokens=196, millions=86),
    "openai/clip-vit-large-patch14": clip(1024, 24, 14, 768, tokens=256, millions=303),
    "google/siglip-so400m-patch14-384": Published(
        "siglip",
        {
            "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
        },
        {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
         "num_hidden_layers": 27},
        384, 729, 428,
    ),
    "google/siglip-base-patch16-224": Published("siglip", {}, {}, 224, 196, 93),
}  # fmt: skip
"""`google/siglip-base-patch16-224` says nothing but its type: all is the class's default."""

WHOLE = {"clip": (CLIPModel, CLIPConfig), "siglip": (SiglipModel, SiglipConfig)}
SEES = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny.write_parts(folder / "clip", folder / "llm", tiny_llava.torch_model())
    return folder / "llm"


def halves(tower: Published) -> dict[str, Any]:
    kind = tower.kind
    return {
        "model_type": kind,
        "vision_config": {"model_type": f"{kind}_vision_model", **tower.vision},
        "text_config": {"model_type": f"{kind}_text_model", **tower.text},
    }


@pytest.mark.parametrize("tower", TOWERS.values(), ids=list(TOWERS))
def test_a_published_tower_is_opened_and_its_tokens_counted(tower, decoder, tmp_path):
    model, config = WHOLE[tower.kind]
    tree = halves(tower)
    with torch.device("meta"):
        names = model(config(**{k: v for k, v in tree.items() if k != "model_type"})).state_dict()
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    write_sparse(tmp_path / "model.safetensors", shapes, "F32")
    tiny.write_json(tmp_path, "config.json", tree)
    source = join(tmp_path, decoder)
    facts = source.config.image_facts
    assert (facts.size, facts.tokens) == (tower.size, tower.tokens)
    mine = {a: x.shape for a, x in source.shapes.items() if a.startswith("vision/")}
    theirs = {name: shape for name, shape in shapes.items() if name.startswith("vision_model.")}
    count = sum(map(math.prod, mine.values()))
    assert count == sum(map(math.prod, theirs.values())) and round(count / 1e6) == tower.millions
    assert source.config.vision.activation == {
        "clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"
    }[tower.kind]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["openai/clip-vit-base-patch16", "google/siglip-so400m-patch14-384"]
)
def test_a_block_of_its_width_sees_what_that_of_transformers_sees(name, decoder, tmp_path):
    """Heads of 72, and pixels left over beside 27 x 27 patches, are so400m's own."""
    tower = TOWERS[name]
    model, config = SEES[tower.kind]
    torch.manual_seed(0)
    shape = config(**tower.vision | {"num_hidden_layers": 1})
    theirs = model(shape).eval()
    tiny.write_json(tmp_path, "config.json", shape.to_dict())
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    source = join(tmp_path, decoder)
    vision, size = source.config.vision, tower.size
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    pixels = torch.tensor(normalize(images, source.config.image_facts).transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states
    graphdef, _ = split(nnx.eval_shape(lambda: vision.build(nnx.Rngs(0))))
    params = load(source, [address for address in source.shapes if address.startswith("vision/")])
    numbers = {address.removeprefix("vision/"): array for address, array in params.items()}
    with jax.default_matmul_precision("highest"):
        found = merge(graphdef, numbers)(jnp.asarray(images), layer=-1, dtype=jnp.float32)
    assert found.shape[1] == tower.tokens + vision.num_prefix
    assert_close(found, expected[-1].numpy(), "hidden states")
