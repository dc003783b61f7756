"""Brings a source's parameters to the devices, one at a time."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Shaped

from astrollava_jax.params import Params
from astrollava_jax.weights.dtypes import cast
from astrollava_jax.weights.layout import Index, whole
from astrollava_jax.weights.source import Source

_BLOCK_BYTES = 1 << 28


def load(
    source: Source,
    addresses: Iterable[str],
    *,
    shardings: Mapping[str, Sharding] | None = None,
    dtypes: Mapping[str, Any] | Any = None,
) -> Params:
    """The parameters as arrays of JAX.

    Of each parameter a host reads what its own devices need, once, and holds no second parameter
    meanwhile.

    Args:
        source: gives the numbers.
        addresses: which ones.
        shardings: where each lies; one device unless given.
        dtypes: what each becomes, or one dtype for all; as stored unless given.

    Raises:
        ValueError: if the source has no numbers for an address; lists all of them.
    """
    addresses = list(addresses)
    absent = [address for address in addresses if address not in source.shapes]
    if absent:
        raise ValueError(
            "these parameters have no numbers: make them fresh, or take them from a model that has "
            "them:\n  " + "\n  ".join(absent)
        )
    params = {}
    # The host's copy of the largest comes while least is loaded.
    for address in sorted(addresses, key=lambda a: -math.prod(source.shapes[a].shape)):
        dtype = dtypes.get(address) if isinstance(dtypes, Mapping) else dtypes
        dtype = np.dtype(source.dtype(address) if dtype is None else dtype)
        sharding = shardings[address] if shardings else SingleDeviceSharding(jax.local_devices()[0])
        params[address] = _place(source, address, sharding, dtype)
    return {address: params[address] for address in addresses}


def _place(source: Source, address: str, sharding: Sharding, dtype: np.dtype) -> jax.Array:
    shape = tuple(source.shapes[address].shape)
    parts = [whole(i, shape) for i in sharding.addressable_devices_indices_map(shape).values() if i]
    hull = tuple(
        slice(min(cut.start for cut in cuts), max(cut.stop for cut in cuts)) for cuts in zip(*parts)
    )
    held = _read(source, address, hull, dtype)

    def part(index: Index | None) -> Shaped[np.ndarray, "..."]:
        cuts = zip(whole(index, shape), hull)
        return held[tuple(slice(c.start - h.start, c.stop - h.start) for c, h in cuts)]

    # Waiting frees the host's copy before the next one is read.
    return jax.make_array_from_callback(shape, sharding, part).block_until_ready()


def _read(source: Source, address: str, index: Index, dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
    """A part of a parameter in another dtype; the stored form is held a block at a time."""
    extent = [cut.stop - cut.start for cut in index]
    result = np.empty(extent, dtype)
    first = index[0]
    step = max(1, _BLOCK_BYTES // (math.prod(extent[1:]) * source.dtype(address).itemsize))
    for start in range(first.start, first.stop, step):
        stop = min(start + step, first.stop)
        block = source.read(address, (slice(start, stop), *index[1:]))
        result[start - first.start : stop - first.start] = cast(block, dtype, address)
    return result
