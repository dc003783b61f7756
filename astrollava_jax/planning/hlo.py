"""Which collectives a compiled program runs, how often, and how many bytes."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

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
_TARGET = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')


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


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one instruction has to do with a collective."""

    kind: str
    role: Literal["start", "done", "whole"]
    """Whether it starts it, awaits it, or both at once."""
    shapes: Shapes
    """Of its result on one chip; of no use where it is awaited."""
    key: str
    """The same where it is started and where it is awaited."""
    line: str
    """What tells its groups and its source."""


def collectives(text: str) -> list[Collective]:
    """Every collective of a program, the largest in all first."""
    bodies = computations(text)
    times = multiplicities(bodies)
    hidden = set(_hidden(bodies))
    found = []
    for name, instructions in bodies.items():
        if name in hidden or not times.get(name):
            continue
        for instruction in instructions:
            one = exchange(instruction, bodies)
            if one is not None and one.role != "done":
                source = _SOURCE.search(one.line) or _SOURCE.search(instruction.line)
                told = source[1] if source else ""
                found.append(Collective(one.kind, one.shapes, times[name], told))
    return sorted(found, key=lambda one: -one.count * one.num_bytes)


def exchange(instruction: Instruction, bodies: Computations) -> Exchange | None:
    """The collective that an instruction starts, awaits or runs; None for all others.

    The compiler hides one behind other work by a pair of instructions, or of fusions. The fusions
    between them go on with it, as they compute something else, and are none.
    """
    kind = instruction.opcode.removesuffix("-start").removesuffix("-done")
    if kind in COLLECTIVES:
        key = instruction.name
        role = "whole"
        if instruction.opcode.endswith("-start"):
            role = "start"
        elif instruction.opcode.endswith("-done"):
            role, key = "done", "".join(instruction.operands[:1])
        return Exchange(kind, role, results(instruction), key, instruction.line)
    if instruction.opcode in ("fusion", "async-start"):
        return _inside(instruction, bodies)
    if instruction.opcode == "async-done":
        return Exchange("", "done", (), "".join(instruction.operands[:1]), instruction.line)
    return None


def _inside(instruction: Instruction, bodies: Computations) -> Exchange | None:
    """The collective that stands in the computation which a fusion or an async start calls."""
    name = instruction.called("calls") or ""
    body = bodies.get(name, ())
    inner = next((one for one in body if one.opcode in COLLECTIVES), None)
    if inner is None:
        return None
    kind, shapes = inner.opcode, results(inner)
    if instruction.opcode == "async-start":
        return Exchange(kind, "start", shapes, instruction.name, inner.line)
    channel = _CHANNEL.search(inner.line)
    key = channel[0] if channel else name
    target = next((found[1] for one in body if (found := _TARGET.search(one.line))), None)
    if target is not None:
        return Exchange(kind, "start" if target == "Start" else "done", shapes, key, inner.line)
    if "async_collective_fusion_config" in inner.line:
        return None
    if name.startswith("%all-reduce-scatter"):
        kind, shapes = "reduce-scatter", instruction.shapes
    return Exchange(kind, "whole", shapes, key, inner.line)


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


def _hidden(bodies: Computations) -> Iterator[str]:
    """The computations that are read where they are called, as one instruction."""
    for instructions in bodies.values():
        for instruction in instructions:
            if instruction.opcode in ("fusion", "async-start"):
                yield from instruction.calls


def results(instruction: Instruction) -> Shapes:
    """What a collective gives: the start of one that is awaited elsewhere may give its input too.

    That of a reduction gives its results alone, however many they are.
    """
    if instruction.opcode == "all-reduce-start":
        return instruction.shapes
    shapes = tuple(shape for shape in instruction.shapes if shape[1])
    if instruction.opcode.endswith("-start") and len(shapes) > 1:
        return shapes[len(shapes) // 2 :]
    return shapes or instruction.shapes
