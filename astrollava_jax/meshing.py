"""Which mesh a run gets: how many ways each thing is split, why, and which device stands where.

Nothing here touches a device: what is asked of one is its `platform`, `process_index`,
`slice_index` and `coords`, so that described devices are arranged as real ones are.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jax.experimental import mesh_utils

Frozen = Literal["replicated", "sharded"]

KEPT = 0.6
"""The part of a device's memory that weights, moments and gradients may fill; activations, the
batch and the compiler's own needs take the rest."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a run must keep in memory, whatever its batch, and what a device has."""

    frozen: int
    """Bytes of one copy of the frozen weights."""
    trained: int
    """Bytes of one copy of what trains: weights, moments and gradients."""
    memory: int | None
    """Bytes of a device that a program may use; None = it does not tell."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Into how many parts each axis splits, where the frozen weights go, and the reason."""

    data: int
    fsdp: int
    tensor: int
    frozen: Frozen
    why: str


REASONS = {
    "single": "one device holds everything",
    "unknown": "these devices do not tell how much memory they have",
    "told": "as the config says",
    "copies": "a whole copy, {all}, fits in the {room} that a device has for it, "
    "so that only gradients are exchanged",
    "frozen fits": "a whole copy, {all}, exceeds the {room} that a device has for it; a copy of "
    "the frozen weights, {frozen}, fits beside a share of what trains",
    "shared": "a whole copy, {all}, exceeds the {room} that a device has for it; a share of a "
    "slice or node's devices fits",
    "spread": "even a share of one slice or node, {share}, exceeds the {room} that a device has "
    "for it, so that weights also cross the slower network between them",
    "too large": "even a share of all devices, {share}, exceeds the {room} that a device has for "
    "it: take more devices, or let less train",
}
"""Case -> its sentence."""


def choose(
    devices: int, islands: int, tensor: int, needs: Needs | None, frozen: Frozen | None = None
) -> Choice:
    """Copies where they fit, else shares of one island, else shares of all.

    Args:
        devices: all of them; `tensor` divides their number.
        islands: slices or nodes, which a slower network joins.
        tensor: ways to split each matrix, which is never chosen but asked for.
        needs: of the run; None = not known.
        frozen: where the frozen weights must go; None = where they fit.
    """
    ways, inside = devices // tensor, devices // islands // tensor
    if inside * islands != ways:  # a matrix is split over several islands
        inside = ways
    if devices == 1 or needs is None or needs.memory is None:
        why = REASONS["single" if devices == 1 else "unknown"]
        return Choice(ways // inside, inside, tensor, frozen or "sharded", why)
    room = int(KEPT * needs.memory)

    def held(fsdp: int, where: Frozen) -> int:
        copy = needs.frozen if where == "replicated" else needs.frozen // fsdp
        return (copy + needs.trained // fsdp) // tensor

    cases: list[tuple[str, int, Frozen]] = [
        ("copies", 1, "replicated"),
        ("frozen fits", inside, "replicated"),
        ("shared", inside, "sharded"),
        ("spread", ways, "replicated"),
        ("spread", ways, "sharded"),
    ]
    allowed = [case for case in cases if frozen in (None, case[2])]
    fitting = [case for case in allowed if held(*case[1:]) <= room]
    case, fsdp, where = fitting[0] if fitting else ("too large", *allowed[-1][1:])
    if case == "shared" and held(1, "replicated") <= room:
        case = "told"  # nothing but the config keeps a copy from being whole
    why = REASONS[case].format(
        room=size(room),
        all=size(held(1, "replicated")),
        frozen=size(needs.frozen // tensor),
        share=size(held(inside if case == "spread" else fsdp, where)),
    )
    return Choice(ways // fsdp, fsdp, tensor, where, why)


def told(
    data: int, fsdp: int, tensor: int, needs: Needs | None, frozen: Frozen | None = None
) -> Choice:
    """Axes that the config names; the frozen weights are replicated where that is known to fit."""
    if frozen is None and needs is not None and needs.memory is not None:
        held = needs.frozen // tensor + needs.trained // (fsdp * tensor)
        frozen = "replicated" if held <= KEPT * needs.memory else "sharded"
    return Choice(data, fsdp, tensor, frozen or "sharded", REASONS["told"])


def size(count: int) -> str:
    """A number of bytes for a person."""
    found = float(count)
    for unit in ("B", "KiB", "MiB"):
        if found < 1024:
            return f"{found:.4g} {unit}"
        found /= 1024
    return f"{found:,.2f} GiB"


def islands(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices by slice or node, within which they are joined by the fast network.

    Raises:
        ValueError: if these are not of one size.
    """
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(_island(device), []).append(device)
    if len({len(group) for group in found.values()}) > 1:
        raise ValueError(
            "expected as many devices in every slice or node, found "
            + ", ".join(f"{len(found[key])} in {key}" for key in sorted(found))
        )
    return [found[key] for key in sorted(found)]


def _island(device: Any) -> int:
    """TPUs tell their slice if there are several, GPUs their node, or else one is a process.

    CPUs stand for other devices in tests: all are one.
    """
    if device.platform == "cpu":
        return 0
    told = getattr(device, "slice_index", None)
    return told if told is not None else device.process_index if device.platform == "gpu" else 0


def arrange(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """The devices as an array of this shape: what is exchanged most stays between neighbours.

    Args:
        devices: as many as the shape holds.
        shape: of data, fsdp and tensor, by growing traffic: over several islands the first axes
            are split first.
    """
    if devices[0].platform == "cpu" or len(devices) == 1:
        return np.array(devices).reshape(shape)
    if (left := len(islands(devices))) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    outer = []
    for axis in shape:  # what does not divide goes on to the next axis; the last takes what is left
        outer.append(math.gcd(axis, left))
        left //= outer[-1]
    return mesh_utils.create_hybrid_device_mesh(
        [axis // part for axis, part in zip(shape, outer)],
        outer,
        devices,
        process_is_granule=getattr(devices[0], "slice_index", None) is None,
        allow_split_physical_axes=True,
    )
