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

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from astrollava_jax import meshing
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
    """How many ways each thing is split. `auto` takes the devices that the others leave.

    Where data and fsdp are both `auto`, `meshing.choose` says which takes them.
    """

    data: int | Literal["auto"] = "auto"
    """Copies of what trains, each with its own rows."""
    fsdp: int | Literal["auto"] = "auto"
    """Slices of the weights and of the rows."""
    tensor: int | Literal["auto"] = 1
    """Slices of heads, hidden units and vocabulary."""
    frozen: Literal["auto", "replicated", "sharded"] = "auto"
    """Whether every device of fsdp has all frozen weights, or a slice; auto = all, if they fit."""

    def __post_init__(self):
        if self.tensor == "auto" and "auto" in (self.data, self.fsdp):
            raise ValueError("at most one of data, fsdp and tensor may be auto, or data and fsdp")
        low = [axis for axis in (self.data, self.fsdp, self.tensor) if axis != "auto" and axis < 1]
        if low:
            raise ValueError(f"expected every axis to be at least 1 or auto, found {low}")

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (all of them, unless given) of a run whose needs are not known.

        Raises:
            ValueError: if the product of the axes is not the number of devices.
        """
        return self.layout(devices)[0]

    def layout(
        self, devices: Sequence[Any] | None = None, needs: meshing.Needs | None = None
    ) -> tuple[Mesh, meshing.Choice]:
        """The mesh over `devices`, as the config says or as `needs` make it, and the reason.

        Raises:
            ValueError: if the product of the axes is not the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        choice = self._choose(devices, needs)
        sizes = {"data": choice.data, "fsdp": choice.fsdp, "tensor": choice.tensor}
        arranged = meshing.arrange(devices, tuple(sizes.values()))
        return Mesh(arranged, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)), choice

    def _choose(self, devices: Sequence[Any], needs: meshing.Needs | None) -> meshing.Choice:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        known = math.prod(size for size in sizes.values() if isinstance(size, int))
        free = len(devices) // known
        if len(devices) % known or (free > 1 and "auto" not in sizes.values()):
            raise ValueError(
                f"mesh {sizes} does not fit {len(devices)} device(s): the product of data, fsdp "
                "and tensor must be the number of devices"
            )
        frozen = None if self.frozen == "auto" else self.frozen
        if self.data == self.fsdp == "auto":
            assert self.tensor != "auto"
            islands = len(meshing.islands(devices))
            return meshing.choose(len(devices), islands, self.tensor, needs, frozen)
        data, fsdp, tensor = [s if isinstance(s, int) else free for s in sizes.values()]
        return meshing.told(data, fsdp, tensor, needs, frozen)


def platform() -> str | None:
    """That of the devices which a function is traced for, there or not; None outside of a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return None if device is None else device.platform


def rows_multiple(mesh: Mesh) -> int:
    """The number of rows of a step must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def share_of_rows(mesh: Mesh) -> tuple[list[int], int]:
    """Which equal parts of all rows the devices of this process take, and of how many.

    Processes that split a tensor among them take the same ones. They need not lie side by side: a
    mesh follows the wires.

    Raises:
        ValueError: if the processes do not take equally many, each part or the same.
    """
    axes = [axis for axis in mesh.axis_names if axis in RULES["batch"]]
    others = [axis for axis in mesh.axis_names if axis not in axes]
    order = [mesh.axis_names.index(axis) for axis in (*axes, *others)]
    blocks = mesh.devices.transpose(order).reshape(rows_multiple(mesh), -1)
    owned: dict[int, list[int]] = {}
    for part, block in enumerate(blocks):
        for process in {device.process_index for device in block}:
            owned.setdefault(process, []).append(part)
    here, shares = owned[jax.process_index()], set(map(tuple, owned.values()))
    if any(len(share) * len(shares) != len(blocks) for share in shares):
        raise ValueError(
            f"mesh {dict(mesh.shape)}: process {jax.process_index()} would take the parts {here} "
            f"of {len(blocks)} of the rows, which are not one equal share: make tensor a divisor, "
            "or a multiple, of the devices of a process"
        )
    return here, len(blocks)


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


def without(sharding: NamedSharding, axis: str) -> NamedSharding:
    """The same, but whole along one axis of the mesh."""
    parts = [tuple(name for name in _axes(part) if name != axis) for part in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*(part or None for part in parts)))


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


def place(array: Any, sharding: Sharding) -> jax.Array:
    """A host's array on the devices; each process, which holds the whole, gives its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(array: jax.Array) -> np.ndarray:
    """The numbers of an array, wherever its parts lie; every process must ask."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def gather(value: Any) -> list[Any]:
    """What every process says, in their order: anything that JSON can tell.

    All processes must call it, from their main thread and in the same order, as it is an operation
    of the devices.

    Raises:
        PeerFailed: if another process has ended with an error instead; says which.
    """
    if jax.process_count() == 1:
        return [value]
    found = _exchange({"value": value})
    failed = [(i, said["failed"]) for i, said in enumerate(found) if "failed" in said]
    if failed:
        raise PeerFailed("\n".join(f"process {i} has ended: {why}" for i, why in failed))
    return [said["value"] for said in found]


def agree(value: Any) -> Any:
    """The value that all processes act on: that of process 0, or the only one's.

    Every decision that depends on a clock, a signal or a local file goes through here.
    """
    return gather(value)[0]


class PeerFailed(ValueError):
    """Another process of the run has met a fault of its own."""


def fail(why: str) -> None:
    """Tells the processes that wait in `gather` that this one ends."""
    if jax.process_count() > 1:
        _exchange({"failed": why})


_MESSAGE_BYTES = 256
"""What is exchanged at once; most of what processes say is a flag or a number."""


def _exchange(said: dict[str, Any]) -> list[dict[str, Any]]:
    text = json.dumps(said).encode()
    fits = len(text) <= _MESSAGE_BYTES
    found = _exchange_bytes(text if fits else str(len(text)).encode(), _MESSAGE_BYTES)
    if all(isinstance(item, dict) for item in map(json.loads, found)):
        return [json.loads(item) for item in found]
    # Somebody has more to say, and said how much: then all say it once more.
    longest = max(item if isinstance(item, int) else 0 for item in map(json.loads, found))
    return [json.loads(item) for item in _exchange_bytes(text, longest)]


def _exchange_bytes(text: bytes, size: int) -> list[bytes]:
    padded = np.frombuffer(text.ljust(size, b" "), np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(padded)]
