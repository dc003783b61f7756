"""Adapters as PEFT lays them down, read over their base and written; LLaVA's own form of them too.

adapter_config.json         rank, alpha, which modules, the base's name
adapter_model.safetensors   base_model.model.<module>.lora_A.weight [r, in], lora_B [out, r]
non_lora_trainables.bin     LLaVA's: what trained whole, the projector
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.weights import llava, safetensors, sidecars
from astrollava_jax.weights.adapted import Adapted, Lora
from astrollava_jax.weights.binding import Bound, bind, unmapped
from astrollava_jax.weights.family import fixed_faults
from astrollava_jax.weights.layout import Foreign, Row, Sentence, Shape, Sizes, expand
from astrollava_jax.weights.llava import HF, MODULES, ORIGINAL, Layout
from astrollava_jax.weights.safetensors import Info, Outgoing, SafetensorsFile
from astrollava_jax.weights.source import Overlay, Source
from astrollava_jax.weights.tensors import Renamed, Tensors
from astrollava_jax.weights.torch_file import TorchFile, write_torch

CONFIG = "adapter_config.json"
_WHOLE = "non_lora_trainables.bin"
_FILES = (("adapter_model.safetensors", SafetensorsFile), ("adapter_model.bin", TorchFile))
_START = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"

_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


class Read(Mapping[str, Any]):
    """Arrays in files by address, each read when it is asked for."""

    def __init__(self, bound: Mapping[str, Bound]):
        self._bound = bound

    def __getitem__(self, address: str) -> Shaped[np.ndarray, "..."]:
        return self._bound[address].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._bound)

    def __len__(self) -> int:
        return len(self._bound)


def base_of(folder: files.Where, base: files.Where | None) -> files.Where:
    """The directory of the model that an adapter belongs to: the one given, or the one it names.

    Raises:
        FileNotFoundError: if none is given and what it names is no directory here.
    """
    named = files.read_json_object(files.join(folder, CONFIG)).get("base_model_name_or_path")
    if base is not None:
        return base
    if named and files.is_folder(named):
        return named
    raise FileNotFoundError(
        f"{folder}: holds an adapter of {named!r}, which is no directory here: give --base DIR "
        "with the directory of that model"
    )


def read_adapter(folder: files.Where, base: Source) -> Adapted:
    """A base with an adapter, and with what trained whole beside it.

    Raises:
        FileNotFoundError: if it has no weights.
        ValueError: if the adapter is of a kind that ours is not, or does not fit the base; all
            faults at once.
    """
    facts = files.read_json_object(files.join(folder, CONFIG))
    rank, alpha = facts.get("r"), facts.get("lora_alpha")
    faults = fixed_faults(facts, _FIXED)
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        faults.append(f"r and lora_alpha: expected numbers, found {rank!r} and {alpha!r}")
    if faults:
        raise ValueError(
            f"{folder}/{CONFIG} describes an adapter that is not known here:\n  "
            + "\n  ".join(faults)
        )
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    tensors = _open(folder)
    bound = _bind(base.config, tensors, rank)
    adapters = {address for address in bound if address.endswith((f"/{LORA_A}", f"/{LORA_B}"))}
    whole = {address: part for address, part in bound.items() if address not in adapters}
    scaled = alpha * math.sqrt(rank) if facts.get("use_rslora") else float(alpha)
    lora = Lora(rank, scaled, Read({address: bound[address] for address in adapters}))
    beneath = Overlay(base, Read(whole), folder, image_mode=_image_mode(folder))
    return Adapted(beneath, lora, folder)


def write_adapter(
    folder: str,
    base: Source,
    lora: Lora,
    whole: Mapping[str, Any],
    *,
    dropout: float = 0.0,
    dtype: Any = None,
) -> None:
    """Writes an adapter into an empty folder: for PEFT on transformers, or for LLaVA's own loader.

    Args:
        folder: where to.
        base: the model that it belongs to; its layout says for whom the adapter is.
        lora: the adapters.
        whole: what else trained.
        dropout: what the config says of it.
        dtype: of all numbers; float32 unless given.

    Raises:
        ValueError: if the base is no directory that others open, or something trained whole that
            the form has no place for.
    """
    layout = {HF.name: MODULES, ORIGINAL.name: ORIGINAL}.get(str(base.layout))
    strays = [a for a in whole if a.split("/")[0] != "projector"]
    if layout is None or strays:
        why = f"{', '.join(strays)} trained too" if strays else "its base is no single directory"
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
    adapters = _foreign(base.config, [row for k in kernels for row in _adapter_rows(k)], lora.rank)
    tensors = [_outgoing(foreign, lora.arrays, kind) for foreign in adapters.values()]
    projector = layout.rows("projector", base.config) if whole else ()
    others = _foreign(base.config, projector, lora.rank)
    whole_tensors = [_outgoing(foreign, whole, kind) for foreign in others.values()]
    modules = sorted({name[len(_START) :].removesuffix(_A).removesuffix(_B) for name in adapters})
    if layout is ORIGINAL:
        _write_for_llava(folder, base, whole_tensors)
    else:
        tensors += whole_tensors
    safetensors.write_file(files.join(folder, "adapter_model.safetensors"), tensors)
    saved = ["multi_modal_projector"] if whole and layout is MODULES else None
    files.write_json(files.join(folder, CONFIG), _config(base, lora, dropout, modules, saved))


def _config(
    base: Source, lora: Lora, dropout: float, modules: list[str], saved: list[str] | None
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.folder_of("llm/embed/embedding"),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": dropout,
        "target_modules": modules,
        "modules_to_save": saved,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _write_for_llava(folder: str, base: Source, whole: list[Outgoing]) -> None:
    """What LLaVA's loader reads beside the adapter: config, tokenizer, the projector."""
    for name, content in sidecars.original_files(base).items():
        files.write_bytes(files.join(folder, name), content)
    if whole:
        arrays = {tensor.name: tensor.read() for tensor in whole}
        write_torch(files.join(folder, _WHOLE), arrays)


def _open(folder: files.Where) -> Tensors:
    found = [(n, kind) for n, kind in _FILES if files.exists(files.join(folder, n))]
    if not found:
        names = " or ".join(name for name, _ in _FILES)
        raise FileNotFoundError(f"{folder}: expected the adapter's weights in {names}, found none")
    name, kind = found[0]
    parts = [Renamed(kind(files.join(folder, name)), _module_name)]
    if files.exists(files.join(folder, _WHOLE)):
        parts.append(Renamed(TorchFile(files.join(folder, _WHOLE)), _module_name))
    return Tensors(str(folder), parts)


def _module_name(name: str) -> str:
    """A tensor's name in the base; adapters may carry their own name, `default`."""
    name = name.removeprefix(_START).replace(".modules_to_save.default.", ".")
    return name.replace(".modules_to_save.", ".").replace(".default.weight", ".weight")


def _bind(config: LlavaConfig, tensors: Tensors, rank: int) -> dict[str, Bound]:
    """Every parameter that the adapter's files give, by address."""
    plain = {name.replace(_A, ".weight").replace(_B, ".weight") for name in tensors.infos}
    rows: list[Row] = []
    for part in llava.PARTS:
        for row in _table(part, config, plain):
            if row.tensor() in tensors.infos:
                rows.append(row)
            elif row.tensor().replace(".weight", _A) in tensors.infos:
                rows += _adapter_rows(row)
    wanted = _foreign(config, rows, rank, start="")
    if not any(address.endswith(LORA_A) for address in (row.address for row in rows)):
        strange = unmapped(tensors.infos, wanted, ())[:5]
        raise ValueError(
            f"{tensors.folder}: none of its adapters belongs to a module of the base: found "
            + ", ".join(strange)
        )
    return bind(wanted, tensors)


def _table(part: str, config: LlavaConfig, names: set[str]) -> tuple[Row, ...]:
    """The rows of a part, in the spelling in which most names stand."""
    tables = [
        layout.rows(part, config, names) for layout in (HF, ORIGINAL) if _holds(layout, config)
    ]
    return max(tables, key=lambda rows: sum(row.tensor() in names for row in rows))


def _holds(layout: Layout, config: LlavaConfig) -> bool:
    try:
        layout.rows("projector", config)
    except ValueError:
        return False
    return True


def _adapter_rows(kernel: Row) -> tuple[Row, Row]:
    """The two rows of the adapter beside a kernel: their [out, in] becomes [r, in] and [out, r]."""
    outputs, inputs = Sentence.parse(kernel.sentence).theirs
    module, name = kernel.address.removesuffix("/kernel"), kernel.name.removesuffix(".weight")
    o, i = " ".join(outputs), " ".join(inputs)
    return (
        Row(f"{module}/{LORA_A}", f"{name}{_A}", f"r ({i}) -> {i} r"),
        Row(f"{module}/{LORA_B}", f"{name}{_B}", f"({o}) r -> r {o}"),
    )


def _foreign(
    config: LlavaConfig, rows: Iterable[Row], rank: int, start: str = _START
) -> dict[str, Foreign]:
    """The foreign tensors of some rows, by name."""
    rows = [Row(row.address, start + row.name, row.sentence) for row in rows]
    ours = llava.shapes(config)
    sizes = {part: {**letters, "r": rank} for part, letters in llava.sizes(config).items()}
    shapes = {row.address: _shape(row, ours, sizes[row.address.split("/")[0]]) for row in rows}
    return expand(rows, shapes, sizes)


def _shape(row: Row, ours: Mapping[str, Shape], sizes: Sizes) -> Shape:
    """The shape of a parameter, of an adapter too."""
    if row.address in ours:
        return ours[row.address]
    kernel = ours[f"{row.address.rsplit('/', 1)[0]}/kernel"]
    own = Sentence.parse(row.sentence).our_shape(sizes)
    return (kernel[0], *own) if row.stacked else own


def _outgoing(foreign: Foreign, arrays: Mapping[str, Any], dtype: np.dtype) -> Outgoing:
    (piece,) = foreign.pieces

    def read() -> Shaped[np.ndarray, "..."]:
        array = np.asarray(arrays[piece.address])[piece.index]
        return piece.to_theirs(array.astype(dtype))

    return Outgoing(foreign.name, Info(foreign.shape, dtype), read)


def _image_mode(folder: files.Where) -> Mode | None:
    """How pictures were seen while it trained, where a config of LLaVA beside it says so."""
    path = files.join(folder, "config.json")
    if not files.exists(path):
        return None
    said = json.loads(files.read_bytes(path)).get("image_aspect_ratio")
    return said if said in ("pad", "anyres") else None
