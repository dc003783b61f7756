"""The legend of axes, the mesh of devices, and the one table that joins them.

| letter | meaning                       | config field       | logical axis   |
|--------|-------------------------------|--------------------|----------------|
| B      | packed rows                   | `batch.rows`       | `batch`        |
| T, S   | positions, key positions      | `batch.length`     | `length`       |
| D, E   | width of decoder, of tower    | `embed_dim`        | `embed`        |
| N, K   | query heads, key/value heads  | `num_heads`        | `heads`        |
| H      | width of a head               | `head_dim`         | `head_dim`     |
| F      | hidden width of the MLP       | `mlp_dim`          | `mlp`          |
| V      | vocabulary                    | `vocab_size`       | `vocab`        |
| L      | layers, stacked               | `num_layers`       | `layers`       |
| I, P   | images per row, patches       | -                  | `images`, -    |
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from astrollava_jax.config import config

Axes = tuple[str | None, ...]

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows go to every device that does not share a tensor
    "embed": ("fsdp",),  # the width is what all large kernels have: shard storage along it
    "heads": ("tensor",),  # attention is independent per head
    "mlp": ("tensor",),  # each hidden unit is independent up to the down projection
    "vocab": ("tensor",),  # logits of a slice of words, reduced in the loss
    "head_dim": (),
    "length": (),
    "layers": (),  # the scanned axis: every device walks all layers
    "patch": (),  # pixels of one patch: a few hundred numbers
    "projected": (),  # the projector's second width: its kernels are small
}
"""Logical axis -> mesh axes. A dimension that the axes do not divide is an error at start-up."""


@config
class MeshConfig:
    """How many ways each thing is split. `auto` takes the devices that the others leave."""

    data: int | Literal["auto"] = 1
    """Copies of the model, each with its own rows."""
    fsdp: int | Literal["auto"] = "auto"
    """Slices of the weights and of the rows."""
    tensor: int | Literal["auto"] = 1
    """Slices of heads, hidden units and vocabulary."""

    def __post_init__(self):
        if [self.data, self.fsdp, self.tensor].count("auto") > 1:
            raise ValueError("at most one of data, fsdp and tensor may be auto")
        low = [axis for axis in (self.data, self.fsdp, self.tensor) if axis != "auto" and axis < 1]
        if low:
            raise ValueError(f"expected every axis to be at least 1 or auto, found {low}")

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (all of them, unless given).

        Raises:
            ValueError: if the product of the axes is not the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        known = math.prod(size for size in sizes.values() if isinstance(size, int))
        free = len(devices) // known if len(devices) % known == 0 else 0
        shape = tuple(size if isinstance(size, int) else free for size in sizes.values())
        if math.prod(shape) != len(devices):
            raise ValueError(
                f"mesh {sizes} does not fit {len(devices)} device(s): the product of data, fsdp "
                "and tensor must be the number of devices"
            )
        return Mesh(
            np.array(devices).reshape(shape), tuple(sizes), axis_types=(AxisType.Auto,) * len(shape)
        )


def rows_multiple(mesh: Mesh) -> int:
    """The number of rows of a step must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def spec(axes: Sequence[str | None], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The mesh axes of an array whose logical axes are `axes`.

    Raises:
        ValueError: if a name is not in the legend.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}: the legend has {sorted(RULES)}")
    taken: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for axis in axes:
        wanted = () if axis is None else RULES[axis]
        free = tuple(name for name in wanted if name in mesh.shape and name not in taken)
        taken.update(free)
        parts.append(free or None)
    return PartitionSpec(*parts)


def named(axes: Sequence[str | None], mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose logical axes are `axes`."""
    return NamedSharding(mesh, spec(axes, mesh))


def fitting(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """The sharding for a smaller array of the same dims; one that its axes do not divide is whole.

    The arrays that stand for a stored kernel are such.
    """
    parts = []
    for size, part in zip(shape, sharding.spec):
        ways = math.prod(sharding.mesh.shape[name] for name in _axes(part))
        parts.append(None if size % ways else part)
    return NamedSharding(sharding.mesh, PartitionSpec(*parts))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler the layout of an activation; does nothing outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, mesh))


def placements(
    axes: dict[str, Axes], shapes: dict[str, Any], mesh: Mesh
) -> dict[str, NamedSharding]:
    """The sharding of every parameter.

    Raises:
        ValueError: if some dimension is not divisible by its mesh axes; all of them at once.
    """
    found, faults = {}, []
    for address, names in axes.items():
        found[address] = named(names, mesh)
        shape = shapes[address].shape
        for dim, (size, part) in enumerate(zip(shape, found[address].spec)):
            split_over = _axes(part)
            ways = math.prod(mesh.shape[name] for name in split_over)
            if size % ways:
                faults.append(
                    f"{address}: {names[dim]} is {size}, not divisible by {split_over} = {ways}"
                )
    if faults:
        raise ValueError(
            f"mesh {dict(mesh.shape)} does not divide the model:\n  " + "\n  ".join(faults)
        )
    return found


def _axes(part: Any) -> tuple[str, ...]:
    """The mesh axes of one dim of a spec, which writes a single one without its tuple."""
    return (part,) if isinstance(part, str) else part or ()


def agree(value: Any) -> Any:
    """The value that all processes act on: the identity for one process.

    Every decision that depends on a clock, a signal or a local file goes through here.
    """
    return value
