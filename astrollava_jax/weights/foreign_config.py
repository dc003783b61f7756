"""Configs of transformers and of the original LLaVA as ours.

What a decoder's or tower's part says is read by its family (see `family.py`); what our formulas do
not have must be switched off there.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.models.vision import TowerConfig
from astrollava_jax.weights.family import families, find, fixed_faults, known, one_of
from astrollava_jax.weights.pixels import read_grid, read_pixels

Tree = Mapping[str, Any]

_HF_FIXED = {"projector_hidden_act": ("gelu", None), "multimodal_projector_bias": (True, None)}
_ORIGINAL_FIXED = {
    "mm_use_im_start_end": (False, None),
    "image_aspect_ratio": ("pad", "square", "anyres", None),
    "s2": (False, None),
}
_MERGES = {"anyres": ("spatial_unpad",)}
"""How the features of a picture are joined, where it is cut into tiles."""

_UNSAID = {"llm": "llama", "vision": "clip_vision_model"}
"""The type of a part that names none."""

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
_SO400M: Tree = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
_BASE_16: Tree = {"model_type": "clip_vision_model", "patch_size": 16}
PUBLISHED_TOWERS: dict[str, Tree] = {
    "openai/clip-vit-large-patch14-336": LARGE_336,
    "openai/clip-vit-large-patch14": {**LARGE_336, "image_size": 224},
    "openai/clip-vit-base-patch16": _BASE_16,
    "google/siglip-so400m-patch14-384": _SO400M,
}

SELECT_FEATURE: dict[str, Literal["patch", "cls_patch"]] = {"default": "patch", "full": "cls_patch"}
"""transformers' word -> LLaVA's and ours, for a tower with a class token."""


def read_hf(tree: Tree, processor: Tree) -> LlavaConfig:
    """The config of a `LlavaForConditionalGeneration`, or of a `LlavaNext...`.

    Raises:
        ValueError: if it describes a model that ours is not; all differences at once.
    """
    text = tree.get("text_config") or {}
    if tree.get("tie_word_embeddings"):
        text = {**text, "tie_word_embeddings": True}
    tower = tree.get("vision_config") or LARGE_336
    strategy = tree.get("vision_feature_select_strategy", "default")
    layer = tree.get("vision_feature_layer", -2)
    faults = fixed_faults(tree, _HF_FIXED) + part_faults("llm", text, "text_config.")
    faults += part_faults("vision", tower, "vision_config.")
    faults += one_of("vision_feature_select_strategy", strategy, tuple(SELECT_FEATURE))
    if not isinstance(layer, int):
        faults.append(f"vision_feature_layer: expected one layer, found {layer}")
    _raise(faults)
    vision = read_tower(tower, processor)
    following = tree.get("model_type") == "llava_next"
    return LlavaConfig(
        grid=read_grid(tree.get("image_grid_pinpoints")) if following else None,
        vision=vision,
        projector=MlpConfig(depth=2),
        llm=_read("llm", text),
        select_layer=layer,
        select_feature=_feature(strategy, vision),
    )


def strategy_of(config: LlavaConfig) -> str:
    """Transformers' word for what is read of the tower: `full` keeps what precedes the patches."""
    drops = config.select_feature == "patch" and config.vision.num_prefix
    return "default" if drops else "full"


def read_original(tree: Tree, tower: TowerConfig) -> LlavaConfig:
    """The config of the original LLaVA, which says of its tower only the name.

    Raises:
        ValueError: as `read_hf`.
    """
    kind, feature = tree.get("mm_projector_type", "linear"), tree.get("mm_vision_select_feature")
    perceptron = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    text = {**tree, "model_type": _decoder_of_original(tree)}
    aspect = tree.get("image_aspect_ratio")
    faults = fixed_faults(tree, _ORIGINAL_FIXED) + part_faults("llm", text)
    merges = _MERGES.get(str(aspect), ("flat", None))
    faults += one_of("mm_patch_merge_type", tree.get("mm_patch_merge_type"), merges)
    faults += one_of("mm_vision_select_feature", feature, (*SELECT_FEATURE.values(), None))
    if not perceptron:
        faults += one_of("mm_projector_type", kind, ("linear", "identity", "mlp2x_gelu"))
    if tree.get("mm_hidden_size", tower.embed_dim) != tower.embed_dim:
        width = tree["mm_hidden_size"]
        faults.append(f"mm_hidden_size: expected the tower's {tower.embed_dim}, found {width}")
    _raise(faults)
    simple = LinearConfig() if kind == "linear" else IdentityConfig()
    # There, a canvas is (width, height). Where no tiles are cut the key is a left-over.
    wide = read_grid(tree.get("image_grid_pinpoints")) if aspect == "anyres" else ()
    return LlavaConfig(
        grid=tuple((height, width) for width, height in wide) or None,
        vision=tower,  # pyright: ignore
        projector=MlpConfig(depth=int(perceptron[1])) if perceptron else simple,
        llm=_read("llm", text),
        select_layer=tree.get("mm_vision_select_layer", -2),
        select_feature=feature or "patch",
    )


def read_decoder(tree: Tree) -> Any:
    """The config of a bare decoder.

    Raises:
        ValueError: as `read_hf`.
    """
    _raise(part_faults("llm", tree))
    return _read("llm", tree)


def read_tower(tree: Tree, processor: Tree) -> Any:
    """The config of a bare tower, or of the half that sees of a CLIP or SigLIP.

    Raises:
        ValueError: as `read_hf`.
    """
    half = tree.get("vision_config")
    if half is not None:
        tree = {"model_type": f"{tree.get('model_type')}_vision_model", **half}
    _raise(part_faults("vision", tree))
    tower = _read("vision", tree)
    pixels = read_pixels(processor, tower)
    return dataclasses.replace(tower, pixel_mean=pixels.mean, pixel_std=pixels.std)


def tower_of_original(tree: Tree) -> Any | None:
    """The tower that an original config describes or names, if it is known."""
    if "mm_vision_config" in tree:  # a key of ours: other readers pass it over
        own = tree["mm_vision_config"]
        tower = read_tower(own, {})
        mean, std = own.get("image_mean"), own.get("image_std")
        return dataclasses.replace(
            tower,
            pixel_mean=tuple(mean or tower.pixel_mean),
            pixel_std=tuple(std or tower.pixel_std),
        )
    name = os.path.basename(str(tree.get("mm_vision_tower")))
    published = {os.path.basename(full): tower for full, tower in PUBLISHED_TOWERS.items()}
    return read_tower(published[name], {}) if name in published else None


def part_faults(part: str, tree: Tree, where: str = "") -> list[str]:
    """What a decoder's or tower's config says that none of ours is."""
    model_type = tree.get("model_type") or _UNSAID[part]
    found = find(part, model_type)
    if found is None:
        return one_of(f"{where}model_type", model_type, known(part))
    family, dialect = found
    return family.faults(tree, dialect, where)


def original_types() -> dict[str, str]:
    """What the original LLaVA calls its models -> the type of the decoder in them."""
    return {"llava": "llama"} | {
        dialect.original[0]: dialect.model_type
        for family in families("llm")
        for dialect in family.dialects
        if dialect.original
    }


def _decoder_of_original(tree: Tree) -> str:
    model_type = str(tree.get("model_type"))
    return original_types().get(model_type, model_type)


def _read(part: str, tree: Tree) -> Any:
    found = find(part, tree.get("model_type") or _UNSAID[part])
    assert found is not None
    family, dialect = found
    return family.read(tree, dialect)


def _feature(strategy: str, tower: TowerConfig) -> Literal["patch", "cls_patch"]:
    """What is read of the tower.

    Raises:
        ValueError: if a class token is to be dropped that is not there.
    """
    if tower.num_prefix:
        return SELECT_FEATURE[strategy]
    _raise(one_of("vision_feature_select_strategy of a tower without class token", strategy,
                  ("full",)))  # fmt: skip
    return "patch"


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise ValueError(
            "config.json describes a model that is not known here:\n  " + "\n  ".join(faults)
        )
