"""A tiny random LLaVA of transformers, and its numbers under our addresses, copied by hand.

The copy is written out here, apart from the package's tables, so that a test that uses it compares
with an independent truth.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedConfig,
)

from astrollava_jax.models import clip, llama, llava, projector

IMAGE_ID, VOCABULARY = 61, 64
GRID = ((28, 56), (56, 28), (56, 56), (84, 28))
"""Of the model that sees pictures of any resolution."""


def torch_model(seed: int = 0, tie: bool = False) -> LlavaForConditionalGeneration:
    """Three tower layers, two decoder layers, grouped queries; weights large enough to matter."""
    return _built(LlavaForConditionalGeneration, LlavaConfig, seed, _llama(tie))


def torch_next(
    seed: int = 0, text: PreTrainedConfig | None = None
) -> LlavaNextForConditionalGeneration:
    """The same as LLaVA-NeXT: with a grid, and a vector that ends a line; or on another decoder."""
    grid = [list(canvas) for canvas in GRID]
    kinds = LlavaNextForConditionalGeneration, LlavaNextConfig
    return _built(*kinds, seed, text or _llama(False), image_grid_pinpoints=grid)


def _llama(tie: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        tie_word_embeddings=tie, max_position_embeddings=256,
    )  # fmt: skip


def _built(
    model_class: Any, config_class: Any, seed: int, text: PreTrainedConfig, **options: Any
) -> Any:
    torch.manual_seed(seed)
    config = config_class(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=28, patch_size=14, projection_dim=16,
        ),
        text_config=text,
        image_token_index=IMAGE_ID, tie_word_embeddings=text.tie_word_embeddings,
        vision_feature_layer=-2, vision_feature_select_strategy="default", **options,
    )  # fmt: skip
    return spread(model_class(config).eval().float())


def spread(model: Any) -> Any:
    """The model with random numbers large enough to matter."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
            elif "embed" not in name:
                value.normal_(0, value[0].numel() ** -0.5)
    return model


def our_config(tie: bool = False) -> llava.LlavaConfig:
    """The same shape in our words."""
    return llava.LlavaConfig(
        vision=clip.ClipConfig(
            image_size=28, patch_size=14, embed_dim=32, mlp_dim=48, num_layers=3, num_heads=4
        ),
        projector=projector.MlpConfig(depth=2),
        llm=llama.LlamaConfig(
            vocab_size=VOCABULARY, embed_dim=48, mlp_dim=80, num_layers=2, num_heads=4,
            num_kv_heads=2, head_dim=12, norm_eps=1e-5, tie_embeddings=tie,
        ),
    )  # fmt: skip


def next_config() -> llava.LlavaConfig:
    """The shape of `torch_next` in our words."""
    return dataclasses.replace(our_config(), grid=GRID)


def by_address(tensors: dict[str, torch.Tensor], tie: bool = False) -> dict[str, np.ndarray]:
    """Named tensors (weights or gradients) of one of these models under our addresses."""
    t = {name: value.detach().numpy() for name, value in tensors.items()}
    config = our_config(tie)
    found = {**_tower(t, config.vision), **_decoder(t, config.llm)}
    if not tie:
        found["llm/lm_head/kernel"] = t["lm_head.weight"].T
    for index in (0, 1):
        name = f"model.multi_modal_projector.linear_{index + 1}"
        found[f"projector/layers_{index}/kernel"] = t[f"{name}.weight"].T
        found[f"projector/layers_{index}/bias"] = t[f"{name}.bias"]
    if "model.image_newline" in t:
        found["image_newline/embedding"] = t["model.image_newline"][None]
    return {address: np.ascontiguousarray(value) for address, value in found.items()}


def _tower(t: dict[str, np.ndarray], config: clip.ClipConfig) -> dict[str, np.ndarray]:
    tower, heads, width = "model.vision_tower.", config.num_heads, config.embed_dim

    def v(name: str) -> np.ndarray:
        layers = range(config.num_layers)
        return np.stack([t[f"{tower}encoder.layers.{layer}.{name}"] for layer in layers])

    patches = t[f"{tower}embeddings.patch_embedding.weight"]
    found = {
        "vision/patch_embed/kernel": patches.transpose(2, 3, 1, 0),
        "vision/class_token/embedding": t[f"{tower}embeddings.class_embedding"][None],
        "vision/positions/embedding": t[f"{tower}embeddings.position_embedding.weight"],
    }
    for ours, theirs in (("pre_norm", "pre_layrnorm"), ("post_norm", "post_layernorm")):
        if f"{tower}{theirs}.weight" in t:
            found[f"vision/{ours}/scale"] = t[f"{tower}{theirs}.weight"]
            found[f"vision/{ours}/bias"] = t[f"{tower}{theirs}.bias"]
    for ours, theirs in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
        found[f"vision/layers/{ours}/scale"] = v(f"{theirs}.weight")
        found[f"vision/layers/{ours}/bias"] = v(f"{theirs}.bias")
    for part in "qkv":
        weight, bias = v(f"self_attn.{part}_proj.weight"), v(f"self_attn.{part}_proj.bias")
        found[f"vision/layers/attn/{part}_proj/kernel"] = weight.transpose(0, 2, 1).reshape(
            -1, width, heads, width // heads
        )
        found[f"vision/layers/attn/{part}_proj/bias"] = bias.reshape(-1, heads, width // heads)
    out = v("self_attn.out_proj.weight").transpose(0, 2, 1)
    found["vision/layers/attn/o_proj/kernel"] = out.reshape(-1, heads, width // heads, width)
    found["vision/layers/attn/o_proj/bias"] = v("self_attn.out_proj.bias")
    for ours, theirs in (("up_proj", "fc1"), ("down_proj", "fc2")):
        found[f"vision/layers/mlp/{ours}/kernel"] = v(f"mlp.{theirs}.weight").transpose(0, 2, 1)
        found[f"vision/layers/mlp/{ours}/bias"] = v(f"mlp.{theirs}.bias")
    return found


def _decoder(t: dict[str, np.ndarray], config: llama.LlamaConfig) -> dict[str, np.ndarray]:
    decoder = "model.language_model."

    def d(name: str) -> np.ndarray:
        layers = range(config.num_layers)
        return np.stack([t[f"{decoder}layers.{layer}.{name}"] for layer in layers])

    found = {
        "llm/embed/embedding": t[f"{decoder}embed_tokens.weight"],
        "llm/norm/scale": t[f"{decoder}norm.weight"],
        "llm/layers/norm1/scale": d("input_layernorm.weight"),
        "llm/layers/norm2/scale": d("post_attention_layernorm.weight"),
    }
    for part in "qkv":
        weight = d(f"self_attn.{part}_proj.weight").transpose(0, 2, 1)
        count = config.num_heads if part == "q" else config.num_kv_heads
        found[f"llm/layers/attn/{part}_proj/kernel"] = weight.reshape(
            *weight.shape[:2], count, config.head_dim
        )
    out = d("self_attn.o_proj.weight").transpose(0, 2, 1)
    found["llm/layers/attn/o_proj/kernel"] = out.reshape(
        -1, config.num_heads, config.head_dim, config.embed_dim
    )
    for part in ("gate_proj", "up_proj", "down_proj"):
        found[f"llm/layers/mlp/{part}/kernel"] = d(f"mlp.{part}.weight").transpose(0, 2, 1)
    return found


def assert_close(ours, theirs, what: str, tolerance: float = 1e-4) -> None:
    """Asserts max |a - b| <= tolerance x max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, what
    difference, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    assert difference <= tolerance * scale, f"{what}: {difference:.3g} against {scale:.3g}"
