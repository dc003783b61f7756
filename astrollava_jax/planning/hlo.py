"""Reads a compiled program's text: which collectives it runs, how often, and how many bytes.

The text is no stable interface of XLA: what is not understood is left out, never guessed.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e\dm\d[a-z]*)?)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%([^ ]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(?:ROOT )?%[^ ]+ = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%[^}\s]+(?:, ?%[^}\s]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Dtype and dims of what it gives; several for a tuple."""
    line: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """What chips exchange at one place of the program."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    count: int
    """How often a step runs it."""
    source: str
    """The operation of the model that it belongs to, as JAX names it."""

    @property
    def num_bytes(self) -> int:
        """Of its result on one chip, each time."""
        return sum(_bytes(*shape) for shape in self.shapes)


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
            channel = re.search(r"channel_id=(\d+)", instruction.line)
            key = channel[0] if channel else f"{name} {number}"
            source = _SOURCE.search(instruction.line)
            one = Collective(kind, _results(instruction), times[name], source[1] if source else "")
            before = found.get(key)
            if before is None or (one.count, bool(one.source)) > (
                before.count,
                bool(before.source),
            ):
                found[key] = one
    return sorted(found.values(), key=lambda one: -one.count * one.num_bytes)


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation by its name; the program's own is `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = found.setdefault("ENTRY" if head[1] else f"%{head[2]}", [])
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)) is not None:
            current.append(instruction)
    return found


def multiplicities(bodies: dict[str, list[Instruction]]) -> dict[str, int]:
    """How often a step runs every computation: loops count their rounds.

    A loop of unknown length counts one.
    """
    called = {name: list(_calls(instructions)) for name, instructions in bodies.items()}
    counts: dict[str, int] = dict.fromkeys(bodies, 0)

    def visit(name: str, times: int) -> None:
        counts[name] = max(counts.get(name, 0), times)
        for other, rounds in called.get(name, ()):
            if counts.get(other, 0) < times * rounds:
                visit(other, times * rounds)

    visit("ENTRY", 1)
    return counts


def _calls(instructions: Sequence[Instruction]) -> Iterator[tuple[str, int]]:
    for instruction in instructions:
        trips = _TRIPS.search(instruction.line)
        rounds = int(trips[1]) if trips and instruction.opcode == "while" else 1
        for names in _CALLED.findall(instruction.line):
            for name in names.split(","):
                yield name.strip().rstrip(","), rounds


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if named is None:
        return None
    end = _end_of_type(line, named.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    shapes = tuple(
        (dtype, tuple(int(size) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(line[named.end() : end])
        if dtype in BITS
    )
    return Instruction(opcode[1], shapes, line)


def _end_of_type(line: str, start: int) -> int:
    """Where the type ends that begins at `start`: at a space, outside of all brackets."""
    depth = 0
    for place in range(start, len(line)):
        character = line[place]
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character == " ":
            return place
    return len(line)


def _results(instruction: Instruction) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What a collective gives: the start of one that is awaited elsewhere gives its input too."""
    shapes = tuple(shape for shape in instruction.shapes if shape[1])
    if instruction.opcode.endswith("-start") and len(shapes) > 1:
        return shapes[len(shapes) // 2 :]
    return shapes or instruction.shapes


def _bytes(dtype: str, dims: tuple[int, ...]) -> int:
    return math.prod(dims) * BITS[dtype] // 8
