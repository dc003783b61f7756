"""Fingerprints: what every bit of an array is, in two numbers that no mesh and no chunking changes.

Each element's bits are mixed with its place; both lanes are sums modulo 2^32 of what comes out, so
that parts are summed wherever they lie, in any order. The mixing takes every bit pattern at one
place to another number: one changed element changes both lanes, always; any other change, a swap
too, passes both once in 2^64. It guards against accidents, not against an adversary. Places are
counted modulo 2^32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt32

Fingerprint = tuple[int, int]

_PLACE, _SPREAD, _AGAIN, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F
"""Odd, so that multiplying loses nothing: the golden ratio, murmur3's finaliser, xxhash's prime."""

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_BLOCK = 1 << 17
"""Elements of which the twin holds a few copies: they stay in the processor's cache."""


def on_devices(arrays: Mapping[str, jax.Array]) -> tuple[dict[str, Fingerprint], dict[str, int]]:
    """Fingerprints of arrays where they lie, and how many numbers are not finite, where any are."""
    found = np.asarray(jax.device_get(_compiled(dict(arrays)))).tolist()
    rows = dict(zip(sorted(arrays), found))  # as jax walks a dict
    prints = {address: (first, second) for address, (first, second, _) in rows.items()}
    return prints, {address: row[2] for address, row in rows.items() if row[2]}


class Twin:
    """The same in NumPy, of an array that arrives in parts, in any order."""

    def __init__(self, shape: Sequence[int]):
        self._strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        self._first = self._second = 0

    def add(self, part: Shaped[np.ndarray, "..."], start: Sequence[int]) -> None:
        """Takes a part, whose first element stands at `start` in the whole array."""
        if part.ndim == 0:
            part, start = part.reshape(1), (0,)
        strides = self._strides or [1]
        step = max(1, _BLOCK // max(1, part[0].size)) if len(part) else 1
        for row in range(0, len(part), step):
            slab = part[row : row + step]
            offset = np.array([start[0] + row, *start[1:]])
            if slab[0].size > _BLOCK:  # one row of many: cut it in its turn
                self._add_row(slab[0], offset, strides)
            else:
                self._add_slab(slab, int(offset @ np.array(strides)), strides)

    @property
    def value(self) -> Fingerprint:
        """Of what was added so far."""
        return self._first, self._second

    def _add_row(self, row: np.ndarray, offset: np.ndarray, strides: list[int]) -> None:
        step = max(1, _BLOCK // max(1, row[0].size))
        begin = int(offset @ np.array(strides))
        for inner in range(0, len(row), step):
            self._add_slab(row[inner : inner + step], begin + inner * strides[1], strides[1:])

    def _add_slab(self, slab: np.ndarray, begin: int, strides: list[int]) -> None:
        places = np.full((1,) * slab.ndim, begin & 0xFFFFFFFF, np.uint32)
        for dim, (size, stride) in enumerate(zip(slab.shape, strides)):
            steps = np.arange(size, dtype=np.uint64) * stride
            places = places + steps.astype(np.uint32).reshape([-1] + [1] * (slab.ndim - dim - 1))
        bits = np.ascontiguousarray(slab).view(_WORDS[slab.dtype.itemsize]).astype(np.uint32)
        mixed = np.multiply(places, np.uint32(_PLACE)) + bits
        scratch = np.empty_like(mixed)
        for shift, factor in ((16, _SPREAD), (13, _AGAIN), (16, None), (15, _SECOND), (13, None)):
            np.right_shift(mixed, np.uint32(shift), out=scratch)
            np.bitwise_xor(mixed, scratch, out=mixed)
            if factor is not None:
                np.multiply(mixed, np.uint32(factor), out=mixed)
            elif shift == 16:
                self._first = (self._first + _total(mixed)) & 0xFFFFFFFF
        self._second = (self._second + _total(mixed)) & 0xFFFFFFFF


def on_host(array: Shaped[np.ndarray, "..."]) -> Fingerprint:
    """The fingerprint of a whole array in memory."""
    twin = Twin(array.shape)
    twin.add(array, (0,) * array.ndim)
    return twin.value


def _total(numbers: UInt32[np.ndarray, "..."]) -> int:
    return int(numbers.sum(dtype=np.uint64))


@jax.jit
def _compiled(arrays: dict[str, jax.Array]) -> UInt32[jax.Array, "arrays 3"]:
    return jnp.stack([_of(array) for _, array in sorted(arrays.items())])


def _of(array: jax.Array) -> UInt32[jax.Array, "3"]:
    """Both lanes and the count of what is not finite, in one pass over an array."""
    place = jnp.zeros(array.shape, jnp.uint32)
    for dim in range(array.ndim):
        stride = math.prod(array.shape[dim + 1 :]) & 0xFFFFFFFF
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim) * jnp.uint32(stride)
    first = _mixed(_bits(array) + place * jnp.uint32(_PLACE))
    second = _stirred(_stirred(first, 15) * jnp.uint32(_SECOND), 13)
    lanes = [jnp.sum(lane, dtype=jnp.uint32) for lane in (first, second)]
    bad = jnp.uint32(0)
    if jnp.issubdtype(array.dtype, jnp.floating):
        bad = jnp.sum(~jnp.isfinite(array), dtype=jnp.uint32)
    return jnp.stack([*lanes, bad])


def _mixed(x: jax.Array) -> jax.Array:
    """Murmur3's finaliser: one to one."""
    x = _stirred(x, 16) * jnp.uint32(_SPREAD)
    x = _stirred(x, 13) * jnp.uint32(_AGAIN)
    return _stirred(x, 16)


def _stirred(x: jax.Array, shift: int) -> jax.Array:
    return x ^ (x >> jnp.uint32(shift))


def _bits(array: jax.Array) -> Any:
    """An array's bits as numbers."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    word = _WORDS[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
