"""LLaVA 1.5 as it is published: names and shapes, and files of that size that take no room."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig

BYTES = {"F16": 2, "BF16": 2, "F32": 4}


def llava_1_5(size: str, rows: int) -> LlavaConfig:
    """LLaVA 1.5 as published."""
    dim, mlp, layers = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}[size]
    return LlavaConfig(
        vision=ClipConfig(
            image_size=336, patch_size=14, embed_dim=1024, mlp_dim=4096, num_layers=24, num_heads=16
        ),
        projector=MlpConfig(depth=2),
        llm=LlamaConfig(
            vocab_size=rows, embed_dim=dim, mlp_dim=mlp, num_layers=layers, num_heads=dim // 128,
            num_kv_heads=dim // 128, head_dim=128,
        ),
    )  # fmt: skip


def published_names(size: str, rows: int, llm: str, head: str, tower: str, projector: list[str]):
    """Names and shapes as the model's files list them, written out by hand."""
    dim, mlp, layers = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}[size]
    names = {
        f"{llm}embed_tokens.weight": (rows, dim),
        f"{llm}norm.weight": (dim,),
        f"{head}.weight": (rows, dim),
        f"{projector[0]}.weight": (dim, 1024),
        f"{projector[0]}.bias": (dim,),
        f"{projector[1]}.weight": (dim, dim),
        f"{projector[1]}.bias": (dim,),
        f"{tower}embeddings.class_embedding": (1024,),
        f"{tower}embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        f"{tower}embeddings.position_embedding.weight": (577, 1024),
    }
    for layer in range(layers):
        start = f"{llm}layers.{layer}."
        names |= {f"{start}self_attn.{p}_proj.weight": (dim, dim) for p in "qkvo"}
        names |= {f"{start}mlp.{p}_proj.weight": (mlp, dim) for p in ("gate", "up")}
        names[f"{start}mlp.down_proj.weight"] = (dim, mlp)
        names |= {f"{start}{p}_layernorm.weight": (dim,) for p in ("input", "post_attention")}
    norms = [f"{tower}pre_layrnorm", f"{tower}post_layernorm"]
    for layer in range(24):
        start = f"{tower}encoder.layers.{layer}."
        norms += [f"{start}layer_norm1", f"{start}layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names[f"{start}self_attn.{part}.weight"] = (1024, 1024)
            names[f"{start}self_attn.{part}.bias"] = (1024,)
        names |= {f"{start}mlp.fc1.weight": (4096, 1024), f"{start}mlp.fc1.bias": (4096,)}
        names |= {f"{start}mlp.fc2.weight": (1024, 4096), f"{start}mlp.fc2.bias": (1024,)}
    return names | {f"{norm}.{end}": (1024,) for norm in norms for end in ("weight", "bias")}


HF_PROJECTOR = ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"]
PREFIX = "vision_tower.vision_model."


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of zeros that is all hole: gigabytes that take no room on the disk."""
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)


def write_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, count: int):
    """Several such files with their index."""
    names, where = list(shapes), {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: shapes[name] for name in names[number::count]}
        write_sparse(folder / file, part, dtype)
        where |= dict.fromkeys(part, file)
    total = sum(math.prod(shape) for shape in shapes.values()) * BYTES[dtype]
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
