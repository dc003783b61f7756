"""Arrays by address in a run directory: written once, read one at a time when asked for."""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.weights.layout import whole
from astrollava_jax.weights.safetensors import Info, Outgoing
from astrollava_jax.weights.safetensors import write as write_safetensors
from astrollava_jax.weights.tensors import open_tensors


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a folder by address; each is read when it is asked for."""

    def __init__(self, folder: str):
        self._tensors = open_tensors(folder)

    def __getitem__(self, address: str) -> np.ndarray:
        return self._tensors.read(address, whole(None, self._tensors.infos[address].shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.infos)

    def __len__(self) -> int:
        return len(self._tensors.infos)


def write_arrays(folder: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by address into a folder of their own."""

    def outgoing(address: str) -> Outgoing:
        array = arrays[address]
        return Outgoing(address, Info(array.shape, array.dtype), lambda: np.asarray(array))

    files.remove(folder)  # a start that was cut short can have left one
    write_safetensors(files.make_folder(folder), [outgoing(address) for address in arrays])


class Merged(Mapping[str, Any]):
    """Arrays of several places as one mapping; nothing is read before it is asked for."""

    def __init__(self, *parts: Mapping[str, Any]):
        self._parts = collections.ChainMap(*map(_mutable, parts))

    def __getitem__(self, address: str) -> Any:
        return self._parts[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class Chosen(Mapping[str, Any]):
    """Some arrays of a mapping; nothing is read before it is asked for."""

    def __init__(self, arrays: Mapping[str, Any], addresses: Iterable[str]):
        self._arrays, self._addresses = arrays, frozenset(addresses)

    def __getitem__(self, address: str) -> Any:
        if address not in self._addresses:
            raise KeyError(address)
        return self._arrays[address]

    def __iter__(self) -> Iterator[str]:
        return (address for address in self._arrays if address in self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)


def _mutable(mapping: Mapping[str, Any]) -> Any:
    return mapping
