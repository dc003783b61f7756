"""The shapes of published models, for who plans a run before the files are here.

A row is what `config.json` says, under the last word of the model's published name.
"""

from collections.abc import Mapping
from typing import Any

from astrollava_jax.weights.foreign_config import LARGE_336

Tree = Mapping[str, Any]


def _vicuna(size: str, rows: int) -> Tree:
    width, hidden, layers = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}[size]
    return {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "num_key_value_heads": width // 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


def _llava(size: str) -> Tree:
    return {
        "model_type": "llava",
        "text_config": _vicuna(size, 32_064),
        "vision_config": LARGE_336,
    }


_NEXT_GRID = {
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
}
DECODERS: dict[str, Tree] = {
    "vicuna-7b-v1.5": _vicuna("7b", 32_000),
    "vicuna-13b-v1.5": _vicuna("13b", 32_000),
}
MODELS: dict[str, Tree] = {
    "llava-1.5-7b": _llava("7b"),
    "llava-1.5-13b": _llava("13b"),
    "llava-v1.6-vicuna-7b": {**_llava("7b"), **_NEXT_GRID},
    "llava-v1.6-vicuna-13b": {**_llava("13b"), **_NEXT_GRID},
}
