"""How long chips take to exchange something: a ring, as wide as the slice's links allow.

Everything here is a formula over data sheets. No chip was timed.
"""

import math
import re
from collections.abc import Sequence

from astrollava_jax.planning.topologies import Chip, Topology

REACHED = 0.93
"""Of a link's speed."""
HOP_SECONDS = 1e-6
"""What each chip on the way adds."""

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_AXIS = re.compile(r"('[^']*')=(\d+)")
_USED = re.compile(r"('[^']*')(?::\((\d+)\)(\d+))?")


def ring_speed(chip: Chip, sides: Sequence[int] | None = None, closed: bool = False) -> float:
    """Bytes per second that a chip passes on in a collective over its slice.

    Both directions of every axis that the slice has are used. A ring over several axes that are
    not closed goes back the way it came: half as fast.

    Args:
        chip: the chip.
        sides: chips along each axis of the slice; unless given, it has all axes of the chip.
        closed: whether the last chip of every such axis is joined to the first.
    """
    axes = chip.ici_links // 2 if sides is None else sum(side > 1 for side in sides)
    speed = REACHED * chip.ici_bytes_per_second * 2 * axes
    return speed / 2 if axes > 1 and not closed else speed


def ring_of(topology: Topology) -> float:
    """The same for a machine of the table."""
    sides = [int(side) for side in topology.topology_name.partition(":")[2].split("x")]
    return ring_speed(topology.chip, sides, closed=all(topology.wrap[: len(sides)]))


def exchange_seconds(kind: str, num_bytes: int, chips: int, speed: float) -> float:
    """How long a collective takes over a ring.

    Args:
        kind: as the compiler calls it.
        num_bytes: of the whole array on one chip: what a gather gives, what a reduction takes.
        chips: that take part together.
        speed: of the ring, in bytes per second; of one link for a permute.
    """
    if kind == "collective-permute":
        return num_bytes / speed + HOP_SECONDS
    if chips < 2:
        return 0.0
    passes = 2 if kind == "all-reduce" else 1
    return passes * (num_bytes * (chips - 1) / chips / speed + (chips - 1) * HOP_SECONDS)


def group_size(line: str, all_chips: int | None) -> int | None:
    """How many chips a collective joins, by its line of the program; None if it is not understood.

    Args:
        line: of the instruction.
        all_chips: of the program, which an empty list of groups means.
    """
    mesh = _MESH.search(line)
    if mesh:
        sizes = {name: int(size) for name, size in _AXIS.findall(mesh[1])}
        used = [
            (int(part) if part else sizes.get(name)) for name, _, part in _USED.findall(mesh[2])
        ]
        return None if None in used else math.prod(size for size in used if size is not None)
    if "replica_groups={}" in line:
        return all_chips
    iota = _IOTA.search(line)
    if iota:
        return int(iota[1].split(",")[-1])
    listed = _LISTED.search(line)
    return len(listed[1].split(",")) if listed and listed[1] else None
