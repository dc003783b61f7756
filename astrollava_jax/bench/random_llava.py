"""A LLaVA with random numbers, as `llava-hf/llava-1.5-7b-hf` lies on the hub but in bfloat16.

Names, shapes and config are written out here, apart from the tables of `weights`, so that a model
that goes through those tables comes from somebody else.
"""

import collections
import dataclasses
import functools
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import ml_dtypes  # noqa: F401 (teaches NumPy what bfloat16 is)
import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.weights import safetensors

_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a model; LLaVA-1.5-7B's unless given."""

    embed: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    words: int = 32000
    """Rows of the vocabulary in the original layout; the next one is `<image>`."""
    rows: int = 32064
    tower_embed: int = 1024
    tower_mlp: int = 4096
    tower_layers: int = 24
    tower_heads: int = 16
    image: int = 336
    patch: int = 14
    kv_heads: int | None = None
    """As many as `heads` unless given."""
    image_id: int | None = None
    """`<image>`: the row after the words unless given."""
    tied: bool = False
    """Whether the head is the table of the words."""
    word_scale: float = 1.0
    """Deviation of the table of the words."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the files."""

    @property
    def kv_width(self) -> int:
        """Of all keys of a position together."""
        return self.embed // self.heads * (self.kv_heads or self.heads)

    @property
    def patches(self) -> int:
        """Of a picture, without the class token: as many positions stand for it."""
        return (self.image // self.patch) ** 2


FULL = Size()
TINY = Size(64, 96, 5, 4, 120, 128, 32, 48, 3, 4, 56, 14)


class Written(NamedTuple):
    """What a file must hold of a tensor."""

    shape: list[int]
    sha256: str
    """Of the bytes."""
    sha256_words: str
    """Of the bytes of the rows that the original layout has: the same but for the vocabulary."""


def write(folder: files.Where, size: Size, seed: int = 0) -> dict[str, Written]:
    """Writes the model, a tensor at a time; returns what its files must hold, by name.

    As many tensors as there are cores are drawn ahead of the one that is written.
    """
    found: dict[str, Written] = {}
    named = list(tensors(size).items())
    drawn: collections.deque[Future[Any]] = collections.deque()
    cores = os.cpu_count() or 1

    def make(number: int) -> Shaped[np.ndarray, "..."]:
        name, shape = named[number]
        array = _numbers(np.random.default_rng([seed, number]), name, shape, size)
        whole = digest(array)
        known = digest(array[: size.words]) if shape[0] == size.rows else whole
        found[name] = Written(list(shape), whole, known)
        return array

    def next_one(number: int) -> Shaped[np.ndarray, "..."]:
        first = number + len(drawn)
        for ahead in range(first, min(number + cores, len(named))):
            drawn.append(pool.submit(make, ahead))
        return drawn.popleft().result()

    dtype = np.dtype(size.dtype)
    outgoing = [
        safetensors.Outgoing(
            name, safetensors.Info(shape, dtype), functools.partial(next_one, number)
        )
        for number, (name, shape) in enumerate(named)
    ]
    with ThreadPoolExecutor(cores) as pool, files.publish_folder(folder) as unfinished:
        safetensors.write(unfinished, outgoing)
        files.write_json(files.join(unfinished, "config.json"), config(size))
        files.write_json(files.join(unfinished, "preprocessor_config.json"), _processor(size))
    return found


def in_original_layout(written: dict[str, Written], size: Size) -> dict[str, Written]:
    """The same tensors under the names of the original layout, which lacks the added words."""
    found = {}
    for name, tensor in written.items():
        old, new = next(pair for pair in _ORIGINAL if name.startswith(pair[0]))
        rows = size.words if tensor.shape[0] == size.rows else tensor.shape[0]
        shape = [rows, *tensor.shape[1:]]
        found[new + name.removeprefix(old)] = Written(
            shape, tensor.sha256_words, tensor.sha256_words
        )
    return found


def digest(array: Shaped[np.ndarray, "..."]) -> str:
    """The SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


_ORIGINAL = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("vision_tower.", "model.vision_tower.vision_tower."),
)


_SCALES = {"linear_2.weight": 0.06} | dict.fromkeys(
    ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight"), 0.02 / 8
)
"""Deviations by how a name ends; 0.02 elsewhere."""


def _numbers(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], size: Size
) -> Shaped[np.ndarray, "..."]:
    """Norms near 1, everything else near 0, so that hidden states neither vanish nor burst.

    What a block adds is small beside what it is added to: words and the features of a picture are
    near 1, the last map of a block begins as GPT-2's (1 / sqrt(2 x layers)). Otherwise a random
    model of this depth makes much of the rounding of bfloat16, and two programs cannot be compared
    in it.
    """
    result = np.empty(shape, size.dtype)
    flat = result.reshape(-1)
    near_one = name.endswith("weight") and len(shape) == 1
    scales = _SCALES | {"embed_tokens.weight": size.word_scale}
    scale = next((scale for end, scale in scales.items() if name.endswith(end)), 0.02)
    for start in range(0, flat.size, _CHUNK):
        part = rng.standard_normal(min(_CHUNK, flat.size - start), np.float32)
        part *= np.float32(scale)
        part += np.float32(near_one)
        flat[start : start + part.size] = part
    return result


def tensors(size: Size) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by its name of transformers 4."""
    D, F = size.embed, size.mlp
    model, head = "language_model.model.", "language_model.lm_head.weight"
    found: dict[str, tuple[int, ...]] = {f"{model}embed_tokens.weight": (size.rows, D)}
    for layer in range(size.layers):
        block = f"{model}layers.{layer}."
        found |= {f"{block}self_attn.{part}_proj.weight": (D, D) for part in "qo"}
        found |= {f"{block}self_attn.{part}_proj.weight": (size.kv_width, D) for part in "kv"}
        found |= {f"{block}mlp.{part}_proj.weight": (F, D) for part in ("gate", "up")}
        found[f"{block}mlp.down_proj.weight"] = (D, F)
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{block}{norm}.weight": (D,) for norm in norms}
    found |= {f"{model}norm.weight": (D,)} | ({} if size.tied else {head: (size.rows, D)})
    for number, width in ((1, size.tower_embed), (2, D)):
        found |= _linear(f"multi_modal_projector.linear_{number}", D, width)
    return found | _tower(size)


def _tower(size: Size) -> dict[str, tuple[int, ...]]:
    E, F, places = size.tower_embed, size.tower_mlp, size.patches + 1
    tower = "vision_tower.vision_model."
    found: dict[str, tuple[int, ...]] = {
        f"{tower}embeddings.class_embedding": (E,),
        f"{tower}embeddings.patch_embedding.weight": (E, 3, size.patch, size.patch),
        f"{tower}embeddings.position_embedding.weight": (places, E),
    }
    for layer in range(size.tower_layers):
        block = f"{tower}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{block}self_attn.{part}", E, E)
        found |= _linear(f"{block}mlp.fc1", F, E) | _linear(f"{block}mlp.fc2", E, F)
        found |= _norm(f"{block}layer_norm1", E) | _norm(f"{block}layer_norm2", E)
    return found | _norm(f"{tower}pre_layrnorm", E) | _norm(f"{tower}post_layernorm", E)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def config(size: Size) -> dict[str, Any]:
    """The hub's config.json; a size that is the library's default is not said there."""
    text = {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "torch_dtype": size.dtype,
        "vocab_size": size.rows,
    }
    if size != FULL:
        text |= {
            "hidden_size": size.embed,
            "intermediate_size": size.mlp,
            "num_attention_heads": size.heads,
            "num_hidden_layers": size.layers,
            "num_key_value_heads": size.kv_heads or size.heads,
            "tie_word_embeddings": size.tied,
        }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": size.patches,
        "image_token_index": size.words if size.image_id is None else size.image_id,
        "model_type": "llava",
        "pad_token_id": size.words + 1,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": size.tied,
        "torch_dtype": size.dtype,
        "vision_config": {
            "hidden_size": size.tower_embed,
            "image_size": size.image,
            "intermediate_size": size.tower_mlp,
            "model_type": "clip_vision_model",
            "num_attention_heads": size.tower_heads,
            "num_hidden_layers": size.tower_layers,
            "patch_size": size.patch,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": size.rows,
    }


def _processor(size: Size) -> dict[str, Any]:
    return {
        "crop_size": {"height": size.image, "width": size.image},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": size.image},
    }
