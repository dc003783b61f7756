"""A model with low-rank adapters: base + scale x A B, computed where it is asked for."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from astrollava_jax import files
from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.weights.dtypes import cast
from astrollava_jax.weights.layout import Index, Shape, whole
from astrollava_jax.weights.source import Derived, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """Adapters with their numbers, wherever these lie."""

    rank: int
    alpha: float
    arrays: Mapping[str, Any]
    """By address: `<module>/lora_a` [L, *inputs, rank] and `<module>/lora_b` [L, rank, *outputs];
    no L where the module is not stacked."""

    @property
    def scale(self) -> float:
        """What an adapter gives is multiplied by this."""
        return self.alpha / self.rank

    @property
    def modules(self) -> list[str]:
        """The addresses of the linear maps that have an adapter."""
        return sorted({address.rsplit("/", 1)[0] for address in self.arrays})


class MergedKernel:
    """A kernel with its adapter, summed in float32; of it only what is asked for is ever computed.

    It has of an array what is needed to write one or to bring it to the devices.
    """

    def __init__(
        self,
        read: Callable[[Index], Shaped[np.ndarray, "..."]],
        shape: Shape,
        dtype: np.dtype,
        a: Float32[np.ndarray, "..."],
        b: Float32[np.ndarray, "..."],
        scale: float,
        address: str,
    ):
        self.shape, self.dtype = shape, dtype
        self._read, self._a, self._b, self._scale, self._address = read, a, b, scale, address
        self._stacked = a.ndim + b.ndim - 2 - len(shape)
        self._inputs = a.ndim - 1  # with the layers

    def __getitem__(self, index: Any) -> Shaped[np.ndarray, "..."]:
        cuts = whole(index if isinstance(index, tuple) else (index,), self.shape)
        layers = cuts[: self._stacked]
        a = self._a[cuts[: self._inputs]]
        b = self._b[(*layers, slice(None), *cuts[self._inputs :])]
        extent = [cut.stop - cut.start for cut in cuts]
        a = a.reshape(*extent[: self._stacked], -1, a.shape[-1])
        b = b.reshape(*extent[: self._stacked], a.shape[-1], -1)
        added = np.matmul(a, b).reshape(extent)
        added *= np.float32(self._scale)
        added += self._read(cuts)
        return cast(added, self.dtype, self._address)

    def astype(self, dtype: Any) -> Shaped[np.ndarray, "..."]:
        """The whole in a dtype, made layer by layer."""
        result = np.empty(self.shape, dtype)
        step = 1 if self._stacked else self.shape[0]
        for start in range(0, self.shape[0], step):
            result[start : start + step] = self[start : start + step]
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.astype(dtype or self.dtype)


class Kernels(Mapping[str, Any]):
    """The merged kernels of a model by address; of each, nothing is computed before it is asked.

    Args:
        base: the model without adapters.
        lora: the adapters.
        dtype: what each kernel is rounded to, once; float32 unless given.
    """

    def __init__(self, base: Source, lora: Lora, dtype: Callable[[str], np.dtype] | None = None):
        self._base, self._lora = base, lora
        self._dtype = dtype or (lambda address: np.dtype(np.float32))

    def __getitem__(self, address: str) -> MergedKernel:
        module, _, last = address.rpartition("/")
        names = f"{module}/{LORA_A}", f"{module}/{LORA_B}"
        if last != "kernel" or names[0] not in self._lora.arrays:
            raise KeyError(address)
        a, b = (np.asarray(self._lora.arrays[name], np.float32) for name in names)
        shape = tuple(self._base.shapes[address].shape)
        _check(address, shape, a.shape, b.shape, self._lora.rank)

        def read(index: Index) -> Shaped[np.ndarray, "..."]:
            return self._base.read(address, index)

        dtype = self._dtype(address)
        return MergedKernel(read, shape, dtype, a, b, self._lora.scale, address)

    def __iter__(self) -> Iterator[str]:
        return (f"{module}/kernel" for module in self._lora.modules)

    def __len__(self) -> int:
        return len(self._lora.modules)


class Adapted(Derived):
    """A model with its adapters merged into its kernels, each rounded once to the base's dtype.

    Args:
        base: the model without them.
        lora: the adapters.
        folder: the directory that they come from.

    Raises:
        ValueError: if adapters are halves, or of what is no kernel of the model; lists all of them.
    """

    def __init__(self, base: Source, lora: Lora, folder: files.Where):
        faults = [
            f"{module}: no {name}"
            for module in lora.modules
            for name in (LORA_A, LORA_B)
            if f"{module}/{name}" not in lora.arrays
        ]
        faults += [
            f"{module}: the model has no such linear map"
            for module in lora.modules
            if f"{module}/kernel" not in base.shapes
        ]
        if faults:
            raise ValueError(
                f"{folder}: its adapters do not fit the model:\n  " + "\n  ".join(faults)
            )
        super().__init__(base)
        self.lora, self._folder = lora, str(folder)
        self.kernels = Kernels(base, lora)
        """The merged kernels, in float32."""
        self._last: tuple[str, Any] = ("", None)
        self.layout = None

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or a part of it."""
        if address not in self.kernels:
            return self.base.read(address, index)
        if self._last[0] != address:  # a kernel is read layer by layer, its adapter once
            self._last = (address, self.kernels[address])
        return cast(self._last[1][index or ()], self.dtype(address), address)

    def fingerprint(self, address: str) -> str:
        """The base's digest, or one of it and of the adapter."""
        found = self.base.fingerprint(address)
        if address not in self.kernels:
            return found
        digest = hashlib.sha256(f"{found} {self.lora.scale!r}".encode())
        for name in (LORA_A, LORA_B):
            array = self.lora.arrays[address.removesuffix("kernel") + name]
            digest.update(np.asarray(array, np.float32).tobytes())
        return digest.hexdigest()[:32]

    def folder_of(self, address: str) -> str:
        """The base's directory, or the adapters'."""
        return self._folder if address in self.kernels else self.base.folder_of(address)


def _check(address: str, kernel: Shape, a: Shape, b: Shape, rank: int) -> None:
    """Compares the shapes of an adapter with that of its kernel.

    Raises:
        ValueError: if they do not fit.
    """
    stacked, inputs = len(a) + len(b) - 2 - len(kernel), len(a) - 1
    layers = kernel[: max(stacked, 0)]
    expected = (*kernel[:inputs], rank), (*layers, rank, *kernel[inputs:])
    if stacked not in (0, 1) or (a, b) != expected:
        raise ValueError(
            f"{address}: its shape is {list(kernel)}; for rank {rank} expected {LORA_A} "
            f"{list(expected[0])} and {LORA_B} {list(expected[1])}, found {list(a)} and {list(b)}"
        )
