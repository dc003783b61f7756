"""Gives a model other canvases, or its first ones, for pictures of any resolution."""

import dataclasses

import numpy as np
from jaxtyping import Shaped

from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.source import Source

NEWLINE = "image_newline/embedding"


def regrid(source: Source, grid: tuple[tuple[int, int], ...]) -> Source:
    """The model with this grid; where it had none, `image_newline` has no numbers yet.

    Raises:
        ValueError: if the grid is none for its tower.
    """
    return source if source.config.grid == grid else Regridded(source, grid)


class Regridded(Source):
    """A model whose grid is not that of its files."""

    def __init__(self, source: Source, grid: tuple[tuple[int, int], ...]):
        self._base = source
        fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
        super().__init__(**fields)
        self.config = dataclasses.replace(source.config, grid=grid)
        self.missing += () if source.config.grid else (NEWLINE,)
        self.layout = None  # its sidecars tell of another grid, or of none

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter of the base, or a part of it."""
        return self._base.read(address, index)

    def dtype(self, address: str) -> np.dtype:
        """What the base stores a parameter as."""
        return self._base.dtype(address)

    def fingerprint(self, address: str) -> str:
        """The base's digest."""
        return self._base.fingerprint(address)

    def folder_of(self, address: str) -> str:
        """The base's directory."""
        return self._base.folder_of(address)
