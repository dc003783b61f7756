"""Gives a model another image size, or other canvases for pictures of any resolution.

A patch that stands between those of training is told its place by interpolation: arXiv 2010.11929
section 3.2, and `interpolate_pos_encoding` of transformers, whose numbers these are.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32, Shaped

from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.vision import TowerConfig
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.source import Derived, Source, cast

POSITIONS, NEWLINE = "vision/positions/embedding", "image_newline/embedding"

MOST_PATCHES = 4096
"""As the largest published tower has, PaliGemma's at 896 pixels. Transformers has no bound; beyond
this one a picture alone fills a row of words, and what attention holds grows as the fourth power of
the size."""

Grid = tuple[tuple[int, int], ...]


def resize(source: Source, image_size: int | None = None, grid: Grid | None = None) -> Source:
    """The model with this image size and this grid, each as it was where it is None.

    What was resized before is resized from its beginning: the numbers do not depend on the way.
    Where the model had no grid, `image_newline` has no numbers yet.

    Raises:
        ValueError: if the size holds no patch or more than `MOST_PATCHES`, or the grid is none for
            a tower of this size.
    """
    wanted = resized_config(source.config, image_size, grid)
    origin = source.origin if isinstance(source, Resized) else source
    return source if wanted == source.config else Resized(origin, wanted.vision, wanted.grid)


def resized_config(
    config: LlavaConfig, image_size: int | None = None, grid: Grid | None = None
) -> LlavaConfig:
    """The shape of that model.

    Raises:
        ValueError: as `resize`.
    """
    vision = config.vision
    if image_size is not None:
        _check_patches(vision, image_size)
        vision = dataclasses.replace(vision, image_size=image_size)
    return dataclasses.replace(config, vision=vision, grid=config.grid if grid is None else grid)


def _check_patches(vision: TowerConfig, image_size: int) -> None:
    patch, side = vision.patch_size, image_size // vision.patch_size
    most = (math.isqrt(MOST_PATCHES) + 1) * patch - 1
    if side**2 > MOST_PATCHES:
        raise ValueError(
            f"{image_size} pixels make {side} x {side} patches of {patch} pixels: expected at most "
            f"{MOST_PATCHES} patches, which is up to {most} pixels"
        )


class Resized(Derived):
    """A model whose image size or grid is not that of its files."""

    def __init__(self, origin: Source, vision: TowerConfig, grid: Grid | None):
        super().__init__(origin)
        self.origin = origin
        self.config = dataclasses.replace(origin.config, vision=vision, grid=grid)
        self.missing += (NEWLINE,) if grid and not origin.config.grid else ()
        self.layout = None  # its sidecars tell of another size, or of another grid
        self.notes += _notes(origin.config.vision, vision)

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or a part of it; of positions the whole is made, and cut then."""
        if address != POSITIONS:
            return self.origin.read(address, index)
        table = interpolate(
            self.origin.read(address), self.origin.config.vision, self.config.vision
        )
        return table if index is None else table[index]


def interpolate(
    table: Shaped[np.ndarray, "S E"], before: TowerConfig, after: TowerConfig
) -> Shaped[np.ndarray, "Z E"]:
    """The places of a tower's patches at another image size; what precedes patches is kept.

    Computed in float32, and rounded once to the dtype of the table.
    """
    old, new, prefix = before.side, after.side, before.num_prefix
    if old == new:
        return table
    exact = table.astype(np.float32)
    along, square = _bicubic(old, new), exact[prefix:].reshape(old, old, -1)
    moved = np.einsum("ij,kl,jle->ike", along, along, square, optimize=True)
    exact = np.concatenate([exact[:prefix], moved.reshape(new * new, -1)])
    return cast(exact, table.dtype, POSITIONS)


def _bicubic(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """What each new place takes of the old ones along a line, as torch's bicubic interpolation.

    Keys' cubic convolution with a = -0.75, pixel centres at halves (`align_corners=False`), the
    outermost place repeated beyond the edge, and no low-pass before a line becomes shorter.
    """
    a = -0.75
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(place).astype(int)
    matrix = np.zeros((new, old))
    for neighbour in (-1, 0, 1, 2):
        x = np.abs(place - first - neighbour)
        near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
        taken = np.clip(first + neighbour, 0, old - 1)
        np.add.at(matrix, (np.arange(new), taken), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def _notes(before: TowerConfig, after: TowerConfig) -> tuple[str, ...]:
    """What a person should know of another size."""
    if before.image_size == after.image_size:
        return ()
    said = f"the tower sees {after.image_size} pixels instead of {before.image_size}: "
    if before.side == after.side:
        return (f"{said}its {after.side} x {after.side} positions stay",)
    sides = f"from {before.side} x {before.side} to {after.side} x {after.side}"
    return (f"{said}positions interpolated {sides}",)
