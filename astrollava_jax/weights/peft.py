"""Adapters as PEFT lays them down, read over their base and written; LLaVA's own form of them too.

adapter_config.json         rank, alpha, which modules, the base's name
adapter_model.safetensors   base_model.model.<module>.lora_A.weight [r, in], lora_B [out, r]
non_lora_trainables.bin     LLaVA's: what trained whole, the projector
preprocessor_config.json    and the other files that say how it saw and was spoken to
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.chat_export import named_template
from astrollava_jax.data.image import Mode
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.weights import llava, projector
from astrollava_jax.weights.adapted import Adapted, Lora
from astrollava_jax.weights.binding import Bound, Misfit, bind, unmapped
from astrollava_jax.weights.family import fixed_faults
from astrollava_jax.weights.layout import Foreign, Row, Sentence, Shape, Sizes, expand, whole
from astrollava_jax.weights.llava import HF, ORIGINAL
from astrollava_jax.weights.pixels import read_pixels
from astrollava_jax.weights.safetensors import SafetensorsFile
from astrollava_jax.weights.source import Overlay, Source
from astrollava_jax.weights.tensors import Renamed, Tensors
from astrollava_jax.weights.torch_file import TorchFile

CONFIG = "adapter_config.json"
WHOLE = "non_lora_trainables.bin"
_FILES = (("adapter_model.safetensors", SafetensorsFile), ("adapter_model.bin", TorchFile))
START = "base_model.model."
A_NAME, B_NAME = ".lora_A.weight", ".lora_B.weight"

_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base as well
    "layer_replication": (None,),
    "layers_to_transform": (None,),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "use_qalora": (False, None),
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


def base_of(folder: files.Where, base: files.Where | None, option: str = "--base") -> files.Where:
    """The directory of the model that an adapter belongs to: the one given, or the one it names.

    Args:
        folder: the adapter's.
        base: the directory given.
        option: how the user gives it.

    Raises:
        FileNotFoundError: if none is given and what it names is no directory here.
    """
    named = files.read_json_object(files.join(folder, CONFIG)).get("base_model_name_or_path")
    if base is not None:
        return base
    if isinstance(named, str) and named and files.is_folder(named):
        return named
    raise FileNotFoundError(
        f"{folder}: holds an adapter of {named!r}, which is no directory here: give {option} DIR "
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
    counts = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    if not counts or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        faults.append(f"r and lora_alpha: expected numbers above 0, found {rank!r} and {alpha!r}")
    if faults:
        raise ValueError(
            f"{folder}/{CONFIG} describes an adapter that is not known here:\n  "
            + "\n  ".join(faults)
        )
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    tensors = _open(folder)
    where = base.folder_of("llm/embed/embedding")
    try:
        bound = _bind(base.config, tensors, rank)
    except Misfit as error:
        raise ValueError(
            f"{folder}: was trained on another model than {where}, or is damaged: "
            f"{len(error.faults)} of its {len(tensors.infos)} tensors do not fit, the first "
            f"{error.faults[0]}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder}: does not fit its base {where}: {error}") from None
    _check_finite(folder, tensors)
    adapters = {address for address in bound if address.endswith((f"/{LORA_A}", f"/{LORA_B}"))}
    trained = {address: part for address, part in bound.items() if address not in adapters}
    scaled = alpha * math.sqrt(rank) if facts.get("use_rslora") else float(alpha)
    lora = Lora(rank, scaled, Read({address: bound[address] for address in adapters}))
    mode, template = _image_mode(folder, base), _template(folder)
    beneath = Overlay(base, Read(trained), folder, image_mode=mode, template=template)
    adapted = Adapted(beneath, lora, folder)
    named = facts.get("base_model_name_or_path")
    if named != where:
        adapted.notes += (f"the adapter names {named!r} as its base, it is put upon {where}",)
    return adapted


def _open(folder: files.Where) -> Tensors:
    found = [(n, kind) for n, kind in _FILES if files.exists(files.join(folder, n))]
    if not found:
        names = " or ".join(name for name, _ in _FILES)
        raise FileNotFoundError(f"{folder}: expected the adapter's weights in {names}, found none")
    name, kind = found[0]
    parts = [Renamed(kind(files.join(folder, name)), _module_name)]
    if files.exists(files.join(folder, WHOLE)):
        parts.append(Renamed(TorchFile(files.join(folder, WHOLE)), _module_name))
    return Tensors(str(folder), parts)


def _check_finite(folder: files.Where, tensors: Tensors) -> None:
    """Refuses numbers that are none: a merge would spread them over whole kernels."""
    wrong = []
    for name, info in tensors.infos.items():
        array = tensors.read(name, whole(None, info.shape))
        lost = array.size - np.count_nonzero(np.isfinite(array))
        wrong += [f"{name}: {lost} of {array.size}"] if lost else []
    if wrong:
        raise ValueError(
            f"{folder}: its training failed: {len(wrong)} of its {len(tensors.infos)} tensors hold "
            "NaN or infinity; take an earlier checkpoint of it\n  " + "\n  ".join(wrong[:10])
        )


def _module_name(name: str) -> str:
    """A tensor's name in the base; adapters may carry their own name, `default`."""
    name = name.removeprefix(START).replace(".modules_to_save.default.", ".")
    return name.replace(".modules_to_save.", ".").replace(".default.weight", ".weight")


def _bind(config: LlavaConfig, tensors: Tensors, rank: int) -> dict[str, Bound]:
    """Every parameter that the adapter's files give, by address."""
    plain = {name.replace(A_NAME, ".weight").replace(B_NAME, ".weight") for name in tensors.infos}
    rows: list[Row] = []
    for part in llava.PARTS:
        for row in _table(part, config, plain):
            if row.tensor() in tensors.infos:
                rows.append(row)
            elif row.tensor().replace(".weight", A_NAME) in tensors.infos:
                rows += adapter_rows(row)
    fused = sorted({row.name.split("[")[0] for row in rows if "[" in row.name and _is_adapter(row)})
    if fused:
        raise ValueError(
            f"adapters of {', '.join(fused)}: each of these tensors holds several of ours; merge "
            "the adapter with PEFT, and open the whole model"
        )
    wanted = foreign(config, rows, rank, start="")
    if not any(address.endswith(LORA_A) for address in (row.address for row in rows)):
        strange = unmapped(tensors.infos, wanted, ())[:5]
        raise ValueError(
            f"{tensors.folder}: none of its adapters belongs to a module of the base: found "
            + ", ".join(strange)
        )
    return bind(wanted, tensors)


def _is_adapter(row: Row) -> bool:
    return row.address.endswith((f"/{LORA_A}", f"/{LORA_B}"))


def _table(part: str, config: LlavaConfig, names: set[str]) -> tuple[Row, ...]:
    """The rows of a part, in the spelling in which most names stand."""
    # Transformers has projectors of two linear maps only.
    layouts = (HF, ORIGINAL) if projector.depth(config) == 2 else (ORIGINAL,)
    tables = [layout.rows(part, config, names) for layout in layouts]
    return max(tables, key=lambda rows: sum(row.tensor() in names for row in rows))


def adapter_rows(kernel: Row) -> tuple[Row, Row]:
    """The two rows of the adapter beside a kernel: their [out, in] becomes [r, in] and [out, r]."""
    outputs, inputs = Sentence.parse(kernel.sentence).theirs
    module, name = kernel.address.removesuffix("/kernel"), kernel.name.replace(".weight", "")
    o, i = " ".join(outputs), " ".join(inputs)
    return (
        Row(f"{module}/{LORA_A}", f"{name}{A_NAME}", f"r ({i}) -> {i} r"),
        Row(f"{module}/{LORA_B}", f"{name}{B_NAME}", f"({o}) r -> r {o}"),
    )


def foreign(
    config: LlavaConfig, rows: Iterable[Row], rank: int, start: str = START
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


def _image_mode(folder: files.Where, base: Source) -> Mode | None:
    """How pictures were seen while it trained, where a file beside it says so."""
    processor, config = (files.join(folder, f"{n}config.json") for n in ("preprocessor_", ""))
    if files.exists(processor):
        return read_pixels(files.read_json_object(processor), base.config.vision).mode
    said = None
    if files.exists(config):
        said = files.read_json_object(config).get("image_aspect_ratio")
    return said if said in ("pad", "anyres") else None


def _template(folder: files.Where) -> str | None:
    """How it was spoken to, where the template beside it is one of ours."""
    path = files.join(folder, "chat_template.jinja")
    return named_template(files.read_text(path)) if files.exists(path) else None
