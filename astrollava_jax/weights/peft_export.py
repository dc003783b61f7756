"""Writes adapters as files that PEFT loads, or LLaVA's own loader."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.weights import safetensors, sidecars
from astrollava_jax.weights.adapted import Lora
from astrollava_jax.weights.layout import Foreign
from astrollava_jax.weights.llava import HF, MODULES, ORIGINAL, Layout
from astrollava_jax.weights.peft import (
    A_NAME,
    B_NAME,
    CONFIG,
    START,
    WHOLE,
    adapter_rows,
    foreign,
)
from astrollava_jax.weights.resize import Resized
from astrollava_jax.weights.safetensors import Info, Outgoing
from astrollava_jax.weights.source import Overlay, Source
from astrollava_jax.weights.torch_file import write_torch

_OF_THE_BASE = ("config.json", "generation_config.json")


def write_adapter(
    folder: str,
    base: Source,
    lora: Lora,
    whole: Mapping[str, Any],
    *,
    template: str | None = None,
    image_mode: Mode | None = None,
    dtype: Any = None,
) -> None:
    """Writes an adapter into an empty folder: for PEFT on transformers, or for LLaVA's own loader.

    Args:
        folder: where to.
        base: the model that it belongs to; its layout says for whom the adapter is.
        lora: the adapters.
        whole: what else trained.
        template: how it was trained to be spoken to, unless as the base.
        image_mode: how it was trained to see pictures, unless as the base.
        dtype: of all numbers; float32 unless given.

    Raises:
        ValueError: if the base is no directory that others open, or something trained whole that
            the form has no place for.
    """
    layout = {HF.name: MODULES, ORIGINAL.name: ORIGINAL}.get(str(base.layout))
    strays = [a for a in whole if a.split("/")[0] != "projector"]
    if layout is None or strays:
        why = f"{', '.join(strays)} trained too" if strays else _no_base(base)
        raise ValueError(f"no adapter that PEFT loads: {why}; write full weights with --merge")
    kernels = [row for part in layout.parts for row in layout.rows(part, base.config)]
    kernels = [row for row in kernels if row.address.removesuffix("/kernel") in lora.modules]
    fused = [row.address for row in kernels if "[" in row.name]
    if fused:
        raise ValueError(
            f"no adapter that PEFT loads: {', '.join(fused)} are parts of one tensor there; write "
            "full weights with --merge"
        )
    kind = np.dtype(np.float32 if dtype is None else dtype)
    adapters = foreign(base.config, [row for k in kernels for row in adapter_rows(k)], lora.rank)
    tensors = [_outgoing(tensor, lora.arrays, kind) for tensor in adapters.values()]
    projector = layout.rows("projector", base.config) if whole else ()
    others = foreign(base.config, projector, lora.rank)
    whole_tensors = [_outgoing(tensor, whole, kind) for tensor in others.values()]
    modules = sorted(
        {name[len(START) :].removesuffix(A_NAME).removesuffix(B_NAME) for name in adapters}
    )
    if layout is ORIGINAL and whole:
        arrays = {tensor.name: tensor.read() for tensor in whole_tensors}
        write_torch(files.join(folder, WHOLE), arrays)
    elif whole:
        tensors += whole_tensors
    model = Overlay(base, {}, folder, template=template, image_mode=image_mode)
    _write_beside(folder, model, layout)
    safetensors.write_file(files.join(folder, "adapter_model.safetensors"), tensors)
    saved = ["multi_modal_projector"] if whole and layout is MODULES else None
    files.write_json(files.join(folder, CONFIG), _config(base, lora, modules, saved))


def _no_base(base: Source) -> str:
    """Why a base is no directory that PEFT opens as it was trained on."""
    folders = list(dict.fromkeys(base.folder_of(address) for address in base.shapes))
    if len(folders) > 1:
        return f"its base is no single directory, but {' and '.join(folders)}"
    if isinstance(base, Resized):
        return f"its base has another image size or grid than {folders[0]} has"
    return f"its base is not as {folders[0]} is: {'; '.join(base.notes) or 'changed on reading'}"


def _config(
    base: Source, lora: Lora, modules: list[str], saved: list[str] | None
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.folder_of("llm/embed/embedding"),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "modules_to_save": saved,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _write_beside(folder: str, model: Source, layout: Layout) -> None:
    """Tokenizer, template and processor; for LLaVA's loader also the config."""
    content = sidecars.original_files(model) if layout is ORIGINAL else sidecars.hf_files(model)
    if layout is not ORIGINAL:  # PEFT reads the base's
        content = {n: c for n, c in content.items() if n not in _OF_THE_BASE}
    for name, data in content.items():
        files.write_bytes(files.join(folder, name), data)


def _outgoing(tensor: Foreign, arrays: Mapping[str, Any], dtype: np.dtype) -> Outgoing:
    (piece,) = tensor.pieces

    def read() -> Shaped[np.ndarray, "..."]:
        array = np.asarray(arrays[piece.address])[piece.index]
        return piece.to_theirs(array.astype(dtype))

    return Outgoing(tensor.name, Info(tensor.shape, dtype), read)
