"""Gives a model other canvases, or its first ones, for pictures of any resolution."""

import dataclasses

from astrollava_jax.weights.source import Derived, Source

NEWLINE = "image_newline/embedding"


def regrid(source: Source, grid: tuple[tuple[int, int], ...]) -> Source:
    """The model with this grid; where it had none, `image_newline` has no numbers yet.

    Raises:
        ValueError: if the grid is none for its tower.
    """
    return source if source.config.grid == grid else Regridded(source, grid)


class Regridded(Derived):
    """A model whose grid is not that of its files."""

    def __init__(self, source: Source, grid: tuple[tuple[int, int], ...]):
        super().__init__(source)
        self.config = dataclasses.replace(source.config, grid=grid)
        self.missing += () if source.config.grid else (NEWLINE,)
        self.layout = None  # its sidecars tell of another grid, or of none
