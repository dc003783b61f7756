"""The files beside the weights, written anew: for a trained model, or in another layout."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from astrollava_jax.data.chat_export import for_pictures, jinja_text
from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.weights.family import Dialect, family_of
from astrollava_jax.weights.foreign_config import (
    PUBLISHED_TOWERS,
    original_types,
    strategy_of,
    tower_of_original,
)
from astrollava_jax.weights.pixels import image_processor
from astrollava_jax.weights.source import Source

NAMES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""The files that travel with a model."""

_KEPT = ("max_position_embeddings", "bos_token_id", "eos_token_id")


def hf_files(source: Source) -> dict[str, bytes]:
    """What stock transformers, vLLM and others read beside the weights of the layout hf."""
    config, ids = source.config, _ids(source)
    if config.grid and source.image_mode != "anyres":
        raise ValueError(
            f"it saw pictures in the mode {source.image_mode}, but the layout hf shows tiles to a "
            "model with a grid: write it in the layout llava"
        )
    kind = "LlavaNext" if config.grid else "Llava"
    facts = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": "llava_next" if config.grid else "llava",
        **({"image_grid_pinpoints": config.grid} if config.grid else {}),
        "ignore_index": -100,
        "image_token_index": ids["image"],
        "image_seq_length": config.image_facts.tokens,
        "pad_token_id": ids["pad"],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": strategy_of(config),
        "tie_word_embeddings": config.llm.tie_embeddings,
        "torch_dtype": _dtype(source),
        # A pad that is not said is the type's own default, which may lie behind the words.
        "text_config": {**_decoder(source)[1], **_ends(ids), "pad_token_id": ids["pad"]},
        "vision_config": _tower(source)[1],
    }
    processor = {
        "processor_class": f"{kind}Processor",
        "image_token": IMAGE_MARKER,
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": facts["vision_feature_select_strategy"],
        "num_additional_image_tokens": config.vision.num_prefix,
    }
    return {
        "config.json": _json(facts),
        "preprocessor_config.json": _json(
            image_processor(source.image_mode, config.vision, config.grid)
        ),
        "processor_config.json": _json(processor),
        **_language_files(source, ids, own_template=for_pictures),
    }


def decoder_files(source: Source) -> dict[str, bytes]:
    """What transformers reads beside the weights of a bare decoder."""
    ids, (dialect, facts) = _ids(source), _decoder(source)
    named = {"architectures": [dialect.architecture], "torch_dtype": _dtype(source)}
    facts = {**named, "pad_token_id": ids["pad"], **facts, **_ends(ids)}
    return {"config.json": _json(facts), **_language_files(source, ids)}


def tower_files(source: Source) -> dict[str, bytes]:
    """What transformers reads beside the weights of a bare tower."""
    dialect, facts = _tower(source)
    named = {"architectures": [dialect.architecture], "torch_dtype": _dtype(source)}
    return {
        "config.json": _json(named | facts),
        "preprocessor_config.json": _json(image_processor(source.image_mode, source.config.vision)),
    }


def original_files(source: Source) -> dict[str, bytes]:
    """What haotian-liu/LLaVA and llama.cpp read beside the weights of the layout llava."""
    config, ids, (dialect, decoder) = source.config, _ids(source), _decoder(source)
    vision = config.vision
    if dialect.original is None:
        raise ValueError(
            f"the layout llava has no decoder {dialect.model_type}: write it in the layout hf"
        )
    model_type, architecture = dialect.original
    if ids["pad"] is not None and ids["pad"] >= source.words:
        ids["pad"] = 0  # there is no row for a pad: LLaVA takes <unk>
    facts = {
        **decoder,
        "architectures": [architecture],
        "model_type": model_type,
        **_ends(ids),
        "vocab_size": source.words,
        "pad_token_id": ids["pad"],
        "tie_word_embeddings": config.llm.tie_embeddings,
        "torch_dtype": _dtype(source),
        "image_aspect_ratio": ASPECT[source.image_mode],
        "mm_hidden_size": vision.embed_dim,
        "mm_projector_type": _PROJECTOR_TYPES[type(config.projector)](config.projector),
        "mm_vision_tower": _tower_name(source),
        # Our own key: enough to know a tower that nobody has published. Others pass it over.
        "mm_vision_config": _tower(source)[1]
        | {"image_mean": vision.pixel_mean, "image_std": vision.pixel_std},
        "mm_vision_select_layer": config.select_layer,
        "mm_vision_select_feature": config.select_feature,
        "mm_patch_merge_type": "spatial_unpad" if source.image_mode == "anyres" else "flat",
        **({"image_grid_pinpoints": _wide_first(config.grid)} if config.grid else {}),
        "mm_resampler_type": None,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,  # where it is missing, LLaVA adds a word
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    }
    content = {"config.json": _json(facts), **_language_files(source, ids)}
    if source.tokenizer_folder is None:
        return content
    if "tokenizer.model" in source.sidecars:
        content |= _sentencepiece_files(source, content["tokenizer_config.json"])
    special = source.tokenizer.special_ids
    dropped = {literal: number for literal, number in special.items() if number >= source.words}
    return {name: _without_additions(name, data, dropped) for name, data in content.items()}


def _wide_first(grid: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Canvases as the original has them: (width, height)."""
    return [(width, height) for height, width in grid]


ASPECT: dict[str, str] = {"pad": "pad", "crop": "square", "stretch": "square", "anyres": "anyres"}
"""Our mode -> the original's `image_aspect_ratio`: a square is what the tower's processor makes."""

_PROJECTOR_TYPES: dict[type, Callable[[Any], str]] = {
    LinearConfig: lambda projector: "linear",
    IdentityConfig: lambda projector: "identity",
    MlpConfig: lambda projector: f"mlp{projector.depth}x_gelu",
}


def raw_config(source: Source) -> dict[str, Any]:
    """The config.json that the model came with; of a LLaVA of transformers, its text part."""
    tree = json.loads(source.sidecars.get("config.json", b"{}"))
    return tree | (tree.get("text_config") or {})


def _ids(source: Source) -> dict[str, Any]:
    """The ids of the tokens that configs name."""
    raw = raw_config(source)
    if source.tokenizer_folder is None:
        image = raw.get("image_token_index", source.words)
        return {"image": image} | {k: raw.get(f"{k}_token_id") for k in ("bos", "eos", "pad")}
    words = source.tokenizer
    return {
        "image": words.image_id,
        "bos": words.bos_id,
        "eos": words.eos_id,
        "pad": words.pad_id,
    }


def _sentencepiece_files(source: Source, written: bytes) -> dict[str, bytes]:
    """What LLaVA needs to read `tokenizer.model`, as it does, in place of `tokenizer.json`."""
    old = json.loads(source.sidecars.get("tokenizer_config.json", b"{}"))
    switches = ("legacy", "add_bos_token", "add_eos_token", "sp_model_kwargs")
    kept = {key: old[key] for key in switches if key in old}
    config = json.loads(written) | {"tokenizer_class": "LlamaTokenizer"} | kept
    model = source.sidecars["tokenizer.model"]
    return {"tokenizer.model": model, "tokenizer_config.json": _json(config)}


def _ends(ids: Mapping[str, Any]) -> dict[str, Any]:
    return {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"]}


def _language_files(
    source: Source, ids: Mapping[str, Any], own_template: Callable[[str], str] = str
) -> dict[str, bytes]:
    """Tokenizer, chat template (what `own_template` makes of its own one), generation config."""
    old = json.loads(source.sidecars.get("generation_config.json", b"{}"))
    ends = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    if isinstance(old.get("eos_token_id"), list):  # several tokens may end an answer
        ends["eos_token_id"] = old["eos_token_id"]
    content = {"generation_config.json": _json(old | ends)}
    if source.tokenizer_folder is None:
        return content
    content |= source.tokenizer.files()
    config = json.loads(content["tokenizer_config.json"])
    config.pop("chat_template", None)  # its one place is the file of its own
    if source.config.grid:
        config["processor_class"] = "LlavaNextProcessor"
    content["tokenizer_config.json"] = _json(config)
    text, own = jinja_text(source.template), source.tokenizer.chat_template
    if text is None and own is not None:
        text = own_template(own)
    return content | ({} if text is None else {"chat_template.jinja": text.encode()})


def _decoder(source: Source) -> tuple[Dialect, dict[str, Any]]:
    """The decoder's type and config, with what is kept of the one that it came with."""
    raw, config = raw_config(source), source.config.llm
    preferred = original_types().get(str(raw.get("model_type")), raw.get("model_type"))
    dialect, keys = family_of(config).write(config, preferred)
    return dialect, {**{key: raw[key] for key in _KEPT if key in raw}, **keys}


def _tower(source: Source) -> tuple[Dialect, dict[str, Any]]:
    return family_of(source.config.vision).write(source.config.vision)


def _tower_name(source: Source) -> str:
    """The name that the model came with, if that is its tower's still, else the published one's."""
    raw = raw_config(source)
    still = tower_of_original(raw) in (None, source.config.vision)
    own = raw.get("mm_vision_tower") if still else None
    published = (
        name
        for name, tree in PUBLISHED_TOWERS.items()
        if tower_of_original({"mm_vision_config": tree}) == source.config.vision
    )
    return own or next(published, "embedded")


def _without_additions(name: str, content: bytes, dropped: Mapping[str, int]) -> bytes:
    """A tokenizer's file without some tokens: the original layout has no rows for them."""
    if not name.startswith(("tokenizer", "special_tokens")) or not name.endswith(".json"):
        return content
    tree = json.loads(content)
    for literal, number in dropped.items():
        tree.get("added_tokens_decoder", {}).pop(str(number), None)
        tree = {key: value for key, value in tree.items() if value != literal}
    if "added_tokens" in tree:
        tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] not in dropped]
    for key in ("extra_special_tokens", "processor_class"):
        tree.pop(key, None)
    return _json(tree)


def _dtype(source: Source) -> str:
    return str(np.dtype(source.dtype("llm/embed/embedding")))


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
