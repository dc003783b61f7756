"""Which collectives a compiled program runs, how often, and how many bytes."""

import dataclasses
import re
from collections.abc import Iterator

from astrollava_jax.planning.instructions import (
    ENTRY,
    Computations,
    Instruction,
    Shapes,
    computations,
    num_bytes,
    rounds,
)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip

_SOURCE = re.compile(r'op_name="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """What chips exchange at one place of the program."""

    kind: str
    shapes: Shapes
    count: int
    """How often a step runs it."""
    source: str
    """The operation of the model that it belongs to, as JAX names it."""

    @property
    def num_bytes(self) -> int:
        """Of its result on one chip, each time."""
        return num_bytes(self.shapes)


def collectives(text: str) -> list[Collective]:
    """Every collective of a program, the largest in all first.

    One that the compiler hides behind other work stands in several places under one channel, and is
    counted once.
    """
    bodies = computations(text)
    times = multiplicities(bodies)
    found: dict[str, Collective] = {}
    for name, instructions in bodies.items():
        for number, instruction in enumerate(instructions):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or not times.get(name):
                continue
            channel = _CHANNEL.search(instruction.line)
            key = channel[0] if channel else f"{name} {number}"
            source = _SOURCE.search(instruction.line)
            one = Collective(kind, results(instruction), times[name], source[1] if source else "")
            before = found.get(key)
            if before is None or (one.count, bool(one.source)) > (
                before.count,
                bool(before.source),
            ):
                found[key] = one
    return sorted(found.values(), key=lambda one: -one.count * one.num_bytes)


def multiplicities(bodies: Computations) -> dict[str, int]:
    """How often a step runs every computation: loops count their rounds.

    A loop of unknown length counts one.
    """
    called = {name: list(_calls(name, bodies)) for name in bodies}
    counts: dict[str, int] = dict.fromkeys(bodies, 0)

    def visit(name: str, times: int) -> None:
        counts[name] = max(counts.get(name, 0), times)
        for other, turns in called.get(name, ()):
            if counts.get(other, 0) < times * turns:
                visit(other, times * turns)

    visit(ENTRY, 1)
    return counts


def _calls(name: str, bodies: Computations) -> Iterator[tuple[str, int]]:
    for instruction in bodies[name]:
        is_loop = instruction.opcode == "while"
        turns = rounds(instruction, bodies[name], bodies) if is_loop else 1
        for other in instruction.calls:
            yield other, 1 if turns is None else turns


def results(instruction: Instruction) -> Shapes:
    """What a collective gives: the start of one that is awaited elsewhere gives its input too."""
    shapes = tuple(shape for shape in instruction.shapes if shape[1])
    if instruction.opcode.endswith("-start") and len(shapes) > 1:
        return shapes[len(shapes) // 2 :]
    return shapes or instruction.shapes
