"""Configs of transformers and of the original LLaVA as ours.

A table says for each of our fields what it is called there and what holds where it is absent (the
class default of transformers). What our formulas do not have must be switched off there.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from astrollava_jax.data.image import Mode
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.models.vision import CLIP_MEAN, CLIP_STD, ClipConfig

Tree = Mapping[str, Any]

LLAMA_KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "embed_dim": ("hidden_size", 4096),
    "mlp_dim": ("intermediate_size", 11008),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
CLIP_KEYS: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "embed_dim": ("hidden_size", 768),
    "mlp_dim": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("hidden_act", "quick_gelu"),
}
"""Our field -> their key and its default."""

_LLAMA_FIXED = {
    "model_type": ("llama", "llava_llama", "llava", None),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
}
_CLIP_FIXED = {"model_type": ("clip_vision_model", None), "num_channels": (3, None)}
_HF_FIXED = {"projector_hidden_act": ("gelu", None), "multimodal_projector_bias": (True, None)}
_ORIGINAL_FIXED = {
    "mm_use_im_start_end": (False, None),
    "mm_patch_merge_type": ("flat", None),
    "image_aspect_ratio": ("pad", "square", None),
    "s2": (False, None),
}
# What holds in transformers for an absent key too; null is not absent there, but switches off.
_PROCESSOR_FIXED = {
    "do_resize": True,
    "use_square_size": False,
    "resample": 3,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
}
_PROCESSOR_SIDE = 224  # there, where no size is given

# The tower of LLaVA 1.5, which a tower-less original directory only names.
LARGE_336: Tree = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
PUBLISHED_TOWERS: dict[str, Tree] = {
    "openai/clip-vit-large-patch14-336": LARGE_336,
    "openai/clip-vit-large-patch14": {**LARGE_336, "image_size": 224},
}

SELECT_FEATURE: dict[str, Literal["patch", "cls_patch"]] = {"default": "patch", "full": "cls_patch"}
"""transformers' word -> LLaVA's and ours."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What an image processor's config says: how pictures are made square, and normalised."""

    mode: Mode
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def read_pixels(processor: Tree, image_size: int | None = None) -> Pixels:
    """The facts of a `preprocessor_config.json`; CLIP's where it is silent.

    Args:
        processor: its content; empty where there is none.
        image_size: the tower's, to be compared.

    Raises:
        ValueError: if it prepares pictures in a way that ours do not know.
    """
    faults = [
        fault
        for key, value in _PROCESSOR_FIXED.items()
        for fault in _one_of(key, processor.get(key, value), (value,))
    ]
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        faults.append(f"rescale_factor: expected 1/255, found {factor!r}")
    if processor and image_size is not None:
        faults += _side_faults(processor, image_size)
    _raise(faults, "preprocessor_config.json")
    return Pixels(
        mode="pad" if processor.get("do_pad") else "crop",
        mean=_three(_given(processor, "image_mean", CLIP_MEAN)),
        std=_three(_given(processor, "image_std", CLIP_STD)),
    )


def _side_faults(processor: Tree, side: int) -> list[str]:
    """Where pictures do not become the tower's square; old files give plain numbers."""
    edge, square = {"shortest_edge": side}, {"height": side, "width": side}
    silent = (None,) if side == _PROCESSOR_SIDE else ()
    return [
        *_one_of("size", processor.get("size"), (edge, side, *silent)),
        *_one_of("crop_size", processor.get("crop_size"), (square, side, *silent)),
    ]


def read_hf(tree: Tree, processor: Tree) -> LlavaConfig:
    """The config of a `LlavaForConditionalGeneration`.

    Raises:
        ValueError: if it describes a model that ours is not; all differences at once.
    """
    text = tree.get("text_config") or {}
    if tree.get("tie_word_embeddings"):
        text = {**text, "tie_word_embeddings": True}
    tower = tree.get("vision_config") or LARGE_336
    strategy = tree.get("vision_feature_select_strategy", "default")
    layer = tree.get("vision_feature_layer", -2)
    faults = _fixed(tree, _HF_FIXED) + _llama_faults(text, "text_config.")
    faults += _fixed(tower, _CLIP_FIXED, "vision_config.")
    faults += _one_of("vision_feature_select_strategy", strategy, tuple(SELECT_FEATURE))
    if not isinstance(layer, int):
        faults.append(f"vision_feature_layer: expected one layer, found {layer}")
    _raise(faults)
    return LlavaConfig(
        vision=_clip(tower, processor),
        projector=MlpConfig(depth=2),
        llm=_llama(text),
        select_layer=layer,
        select_feature=SELECT_FEATURE[strategy],
    )


def read_original(tree: Tree, tower: ClipConfig) -> LlavaConfig:
    """The config of the original LLaVA, which says of its tower only the name.

    Raises:
        ValueError: as `read_hf`.
    """
    kind, feature = tree.get("mm_projector_type", "linear"), tree.get("mm_vision_select_feature")
    perceptron = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    faults = _fixed(tree, _ORIGINAL_FIXED) + _llama_faults(tree)
    faults += _one_of("mm_vision_select_feature", feature, (*SELECT_FEATURE.values(), None))
    if not perceptron:
        faults += _one_of("mm_projector_type", kind, ("linear", "identity", "mlp2x_gelu"))
    if tree.get("mm_hidden_size", tower.embed_dim) != tower.embed_dim:
        width = tree["mm_hidden_size"]
        faults.append(f"mm_hidden_size: expected the tower's {tower.embed_dim}, found {width}")
    _raise(faults)
    simple = LinearConfig() if kind == "linear" else IdentityConfig()
    return LlavaConfig(
        vision=tower,
        projector=MlpConfig(depth=int(perceptron[1])) if perceptron else simple,
        llm=_llama(tree),
        select_layer=tree.get("mm_vision_select_layer", -2),
        select_feature=feature or "patch",
    )


def read_llama(tree: Tree) -> LlamaConfig:
    """The config of a bare Llama.

    Raises:
        ValueError: as `read_hf`.
    """
    _raise(_llama_faults(tree))
    return _llama(tree)


def read_clip(tree: Tree, processor: Tree) -> ClipConfig:
    """The config of a bare CLIP, or of its vision half.

    Raises:
        ValueError: as `read_hf`.
    """
    tower = tree.get("vision_config", tree) or {}
    _raise(_fixed(tower, _CLIP_FIXED))
    return _clip(tower, processor)


def tower_of_original(tree: Tree) -> ClipConfig | None:
    """The tower that an original config describes or names, if it is known."""
    if "mm_vision_config" in tree:  # a key of ours: other readers pass it over
        own = tree["mm_vision_config"]
        side = _given(own, *CLIP_KEYS["image_size"])
        return read_clip(own, {**own, "size": side, "crop_size": side})
    name = os.path.basename(str(tree.get("mm_vision_tower")))
    known = {os.path.basename(full): tower for full, tower in PUBLISHED_TOWERS.items()}
    return read_clip(known[name], {}) if name in known else None


def _llama(tree: Tree) -> LlamaConfig:
    values = _translated(tree, LLAMA_KEYS)
    heads = values["num_heads"]
    rope = tree.get("rope_parameters") or {}
    return LlamaConfig(
        **values,
        num_kv_heads=_given(tree, "num_key_value_heads", heads),
        head_dim=_given(tree, "head_dim", values["embed_dim"] // heads),
        rope_theta=float(_given(rope, "rope_theta", _given(tree, "rope_theta", 10000.0))),
    )


def _clip(tree: Tree, processor: Tree) -> ClipConfig:
    values = _translated(tree, CLIP_KEYS)
    pixels = read_pixels(processor, values["image_size"])
    return ClipConfig(**values, pixel_mean=pixels.mean, pixel_std=pixels.std)


def _translated(tree: Tree, keys: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {ours: _given(tree, theirs, default) for ours, (theirs, default) in keys.items()}


def _given(tree: Tree, key: str, default: Any) -> Any:
    """The value of a key; null means that it was not given."""
    value = tree.get(key)
    return default if value is None else value


def _llama_faults(tree: Tree, where: str = "") -> list[str]:
    faults = _fixed(tree, _LLAMA_FIXED, where)
    rope = tree.get("rope_parameters") or {}
    return faults + _one_of(
        f"{where}rope_parameters.rope_type", rope.get("rope_type"), ("default", None)
    )


def _fixed(tree: Tree, allowed: Mapping[str, tuple[Any, ...]], where: str = "") -> list[str]:
    return [
        fault
        for key, values in allowed.items()
        for fault in _one_of(f"{where}{key}", tree.get(key), values)
    ]


def _one_of(key: str, value: Any, allowed: Sequence[Any]) -> list[str]:
    if value in allowed:
        return []
    known = " or ".join(repr(item) for item in allowed if item is not None) or "none"
    return [f"{key}: expected {known}, found {value!r}"]


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    assert all(map(math.isfinite, (red, green, blue)))
    return red, green, blue


def _raise(faults: Sequence[str], where: str = "config.json") -> None:
    if faults:
        raise ValueError(
            f"{where} describes a model that is not known here:\n  " + "\n  ".join(faults)
        )
