"""On which mesh a run trains: what it needs, what a device has, and what follows."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from astrollava_jax.meshing import Choice, Needs
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.stage import Model
from astrollava_jax.sharding import agree

TRAINING_BYTES = 16
"""Per parameter that trains: its master weight, two moments and a gradient, in float32."""


def device_memory() -> int | None:
    """Bytes that a program may use of a device; None where devices do not tell (a CPU).

    All processes must call it: they go by process 0's first device.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return agree(stats.get("bytes_limit"))


def layout(run: RunConfig, model: Model, memory: int | None) -> tuple[Mesh, Choice]:
    """The mesh of a run over all devices of this much memory, and why it is that.

    Raises:
        ValueError: if the product of the axes is not the number of devices.
    """
    return run.mesh.layout(needs=needs(run, model, memory))


def needs(run: RunConfig, model: Model, memory: int | None) -> Needs:
    """What a run keeps on its devices; `memory` = bytes of one of them, None = not known."""
    frozen = sum(stored_bytes(run, model, address) for address in model.frozen)
    trained = sum(math.prod(model.shapes[address].shape) for address in model.trainable)
    return Needs(frozen, TRAINING_BYTES * trained, memory)


def stored_bytes(run: RunConfig, model: Model, address: str) -> int:
    """The bytes of a frozen parameter's working copy, in its stored form."""
    array = jax.ShapeDtypeStruct(model.shapes[address].shape, run.precision.working)
    how = model.stores.get(address)
    leaves = jax.tree.leaves(array if how is None else jax.eval_shape(how, array))
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def sentence(mesh: Mesh, choice: Choice) -> str:
    """The mesh and the reason, in a line."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = mesh.devices
    return (
        f"mesh: {axes} = {devices.size} device(s), {devices.flat[0].device_kind}; frozen weights "
        f"{choice.frozen}: {choice.why}"
    )
