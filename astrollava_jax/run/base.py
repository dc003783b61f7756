"""Where the original directories of a run stand now, if they moved."""

import dataclasses
from collections.abc import Sequence

from astrollava_jax.run import directory
from astrollava_jax.run.config import InitConfig
from astrollava_jax.weights.llava import DECODER, TOWER
from astrollava_jax.weights.recognise import recognise

Bases = Sequence[str]
"""Where the original of a run stands now, if it moved: one model, or a tower and a decoder."""


def moved(folder: str, bases: Bases, vision: str | None) -> InitConfig | None:
    """Where a run's original directories are said to stand now; None where nothing is said."""
    before = directory.original_init(folder)
    if bases:
        return standing(bases, vision or before.vision)
    return None if vision is None else dataclasses.replace(before, vision=vision)


def standing(bases: Bases, vision: str | None) -> InitConfig:
    """The directories that `--base` names: one model, or a tower and a decoder in any order."""
    if len(bases) == 1:
        return InitConfig(model=bases[0], vision=vision)
    kinds = [(recognise(base), base) for base in bases]
    found = dict(kinds)
    if len(bases) > 2 or set(found) != {TOWER, DECODER}:
        told = ", ".join(f"{base} ({layout.holds})" for layout, base in kinds)
        raise ValueError(f"--base: expected one model, or a tower and a decoder, found {told}")
    return InitConfig(vision=found[TOWER], llm=found[DECODER])


def same_kind(before: InitConfig, now: InitConfig, what: str) -> InitConfig:
    """Where the original stands now.

    Raises:
        ValueError: if two towers stand for one model, or one model for two towers.
    """
    if (before.llm is None) != (now.llm is None):
        stood = before.model or f"{before.vision} and {before.llm}"
        raise ValueError(
            f"{what} begins from {stood}: say where that stands now, by --base MODEL for one model "
            "or by --base TOWER --base DECODER for two parts"
        )
    return dataclasses.replace(now, image_size=before.image_size, grid=before.grid)
