"""`preprocessor_config.json`, both ways: how pictures become a square, and are normalised."""

import ast
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astrollava_jax.data.image import Mode
from astrollava_jax.models import clip, siglip
from astrollava_jax.models.vision import Channels, TowerConfig
from astrollava_jax.weights.family import one_of

Tree = Mapping[str, Any]
Grid = tuple[tuple[int, int], ...]

NEXT_GRID: Grid = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""The canvases (height, width) of LLaVA-NeXT, where a file names none."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What an image processor's config says."""

    mode: Mode
    mean: Channels
    std: Channels
    grid: Grid | None = None


@dataclasses.dataclass(frozen=True)
class Processor:
    """One image processor of transformers, as far as its pixels are ours.

    Attributes:
        kind: its class, as `image_processor_type` names it.
        takes: keys and the value that they must have; an absent key has it. Null is not absent
            there, but switches off.
        sizes: keys and the values that they may have for a tower's square, the first one written.
        mean: of its pixels, where the file is silent.
        std: as `mean`.
    """

    kind: str
    takes: Mapping[str, Any]
    sizes: Callable[[int], Mapping[str, Sequence[Any]]]
    mean: Channels
    std: Channels


_COMMON = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True}
_CROPPED = _COMMON | {"use_square_size": False, "do_center_crop": True}
_SILENT_SIDE = 224  # there, where no size is given


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _edge_and_crop(side: int) -> dict[str, Sequence[Any]]:
    """Old files give plain numbers."""
    silent = (None,) if side == _SILENT_SIDE else ()
    return {
        "size": ({"shortest_edge": side}, side, *silent),
        "crop_size": (_square(side), side, *silent),
    }


def _square_alone(side: int) -> dict[str, Sequence[Any]]:
    return {"size": (_square(side), side, *((None,) if side == _SILENT_SIDE else ()))}


PROCESSORS: dict[Mode, Processor] = {
    "pad": Processor("LlavaImageProcessor", _CROPPED, _edge_and_crop, clip.MEAN, clip.STD),
    "crop": Processor("CLIPImageProcessor", _CROPPED, _edge_and_crop, clip.MEAN, clip.STD),
    "anyres": Processor(
        "LlavaNextImageProcessor",
        _CROPPED | {"do_pad": True},
        _edge_and_crop,
        clip.MEAN,
        clip.STD,
    ),
    "stretch": Processor("SiglipImageProcessor", _COMMON, _square_alone, siglip.HALF, siglip.HALF),
}
"""How each of our modes is called there."""

_SILENT: dict[str, Mode] = {"clip": "crop", "siglip": "stretch"}
"""How a tower's own processor makes pictures square."""


def read_pixels(processor: Tree, tower: TowerConfig) -> Pixels:
    """The facts of a file; those of the tower's own processor where there is none.

    Raises:
        ValueError: if it prepares pictures in a way that ours do not know.
    """
    if not processor:
        return Pixels(_SILENT[tower.type], tower.pixel_mean, tower.pixel_std)  # pyright: ignore
    mode = _mode(processor, tower)
    row = PROCESSORS[mode]
    faults = [
        fault
        for key, value in row.takes.items()
        for fault in one_of(key, processor.get(key, value), (value,))
    ]
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        faults.append(f"rescale_factor: expected 1/255, found {factor!r}")
    for key, allowed in row.sizes(tower.image_size).items():
        faults += one_of(key, processor.get(key), allowed)
    if faults:
        raise ValueError(
            "preprocessor_config.json describes a model that is not known here:\n  "
            + "\n  ".join(faults)
        )
    mean, std = (processor.get(f"image_{name}") for name in ("mean", "std"))
    grid = read_grid(processor.get("image_grid_pinpoints")) if mode == "anyres" else None
    return Pixels(mode, _three(mean or row.mean), _three(std or row.std), grid)


def read_grid(pinpoints: Any) -> Grid:
    """Canvases (height, width) as a file gives them: a list, or its text as LLaVA's scripts do.

    Raises:
        ValueError: if it gives something else than a list of pairs of numbers.
    """
    if pinpoints is None:
        return NEXT_GRID
    try:
        pairs = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        return tuple((int(height), int(width)) for height, width in pairs)
    except (TypeError, ValueError, SyntaxError):
        raise ValueError(
            "image_grid_pinpoints: expected a list of pairs (height, width) of pixels, found "
            f"{pinpoints!r}"
        ) from None


def image_processor(mode: Mode, tower: TowerConfig, grid: Grid | None = None) -> dict[str, Any]:
    """The content of the file."""
    row = PROCESSORS[mode]
    sizes = row.sizes(tower.image_size)
    return {
        "image_processor_type": row.kind,
        "processor_class": "LlavaNextProcessor" if grid else "LlavaProcessor",
        **({"do_pad": True} if mode == "pad" else {}),
        **({"image_grid_pinpoints": grid} if mode == "anyres" else {}),
        "do_convert_rgb": True,
        **row.takes,
        **{key: allowed[0] for key, allowed in sizes.items()},
        "rescale_factor": 1 / 255,
        "image_mean": tower.pixel_mean,
        "image_std": tower.pixel_std,
    }


def _mode(processor: Tree, tower: TowerConfig) -> Mode:
    """The mode of a processor: by its class, and by `do_pad`, which LLaVA's sets."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    for ending in ("Fast", "Pil"):
        kind = kind.removesuffix(ending)
    if kind == "LlavaNextImageProcessor":
        return "anyres"
    if processor.get("do_pad"):
        return "pad"
    if kind == "SiglipImageProcessor":
        return "stretch"
    return "crop" if kind != "None" or tower.type == "clip" else _SILENT[tower.type]  # pyright: ignore


def _three(values: Sequence[float]) -> Channels:
    red, green, blue = map(float, values)
    assert all(map(math.isfinite, (red, green, blue)))
    return red, green, blue
