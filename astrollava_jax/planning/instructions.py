"""Reads a compiled program's text: its computations, line by line, and how often its loops turn.

The text is no stable interface of XLA: what is not understood is left out, never guessed.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Dtype and dims of arrays."""

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
ENTRY = "ENTRY"
"""The name of the program's own computation."""

_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e\dm\d[a-z]*)?)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?(%[^ ]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(ROOT )?(%[^ ]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_OPERAND = re.compile(r"%[^\s,(){}]+")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)"
    r"=\{?(%[^},\s]+(?:, ?%[^},\s]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"\bindex=(\d+)")
_LITERAL = re.compile(r"constant\((-?\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    opcode: str
    shapes: Shapes
    """Of what it gives; several for a tuple."""
    operands: tuple[str, ...]
    """Names of what it takes."""
    line: str
    root: bool
    """Whether it is what its computation gives."""

    def called(self, role: str) -> str | None:
        """The computation that it calls as its `body`, its `condition` and so on."""
        found = re.search(rf"\b{role}=(%[^\s,}}]+)", self.line)
        return found[1] if found else None

    @property
    def calls(self) -> tuple[str, ...]:
        """All computations that it calls."""
        groups = _CALLED.findall(self.line)
        return tuple(name.strip() for group in groups for name in group.split(","))

    @property
    def index(self) -> int | None:
        """Which part of a tuple it takes."""
        found = _INDEX.search(self.line)
        return int(found[1]) if found else None


Computations = Mapping[str, Sequence[Instruction]]


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation by its name; the program's own is `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    current: list[str] | None = None
    parts: dict[str, list[str]] = {}
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = parts.setdefault(ENTRY if head[1] else head[2], [])
        elif line == "}":
            current = None
        elif current is not None:
            # What a kernel says of itself may hold line breaks.
            if _NAME.match(line) or not current:
                current.append(line)
            else:
                current[-1] += line
    for name, lines in parts.items():
        read = (_instruction(line) for line in lines)
        found[name] = [instruction for instruction in read if instruction is not None]
    return found


def num_bytes(shapes: Shapes) -> int:
    """What arrays take."""
    return sum(math.prod(dims) * BITS[dtype] // 8 for dtype, dims in shapes)


def rounds(loop: Instruction, caller: Sequence[Instruction], bodies: Computations) -> int | None:
    """How often a loop turns: as the compiler says, or as its counter does; None where neither.

    The counter begins at a constant, has a constant added in every round, and is compared with one.
    """
    said = _TRIPS.search(loop.line)
    if said:
        return int(said[1])
    condition = _by_name(bodies.get(loop.called("condition") or "", ()))
    body = _by_name(bodies.get(loop.called("body") or "", ()))
    outside = _by_name(caller)
    test = next((one for one in condition.values() if one.root), None)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.line:
        return None
    if len(test.operands) != 2 or not loop.operands:
        return None
    counter, limit = (condition.get(name) for name in test.operands)
    if counter is None or counter.opcode != "get-tuple-element" or counter.index is None:
        return None
    start = _number(_part(outside, loop.operands[0], counter.index), outside)
    step = _step(body, counter.index)
    end = _number(limit, condition)
    if start is None or step is None or end is None or step < 1:
        return None
    return max(0, math.ceil((end - start) / step))


def _step(body: Mapping[str, Instruction], index: int) -> int | None:
    """What a round adds to a part of the loop's tuple."""
    root = next((one for one in body.values() if one.root), None)
    if root is None:
        return None
    after = _plain(_part(body, root.name, index), body)
    if after is None or after.opcode != "add":
        return None
    terms = [_plain(body.get(name), body) for name in after.operands]
    is_counter = [
        term is not None and term.opcode == "get-tuple-element" and term.index == index
        for term in terms
    ]
    if sorted(is_counter) != [False, True]:
        return None
    return _number(terms[is_counter.index(False)], body)


def _part(body: Mapping[str, Instruction], name: str, index: int) -> Instruction | None:
    """A part of a tuple that is put together here."""
    whole = _plain(body.get(name), body)
    if whole is None or whole.opcode != "tuple" or index >= len(whole.operands):
        return None
    return body.get(whole.operands[index])


_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
"""What gives its operand's value."""


def _plain(one: Instruction | None, body: Mapping[str, Instruction]) -> Instruction | None:
    """What makes a value, behind the copies of it."""
    while one is not None and one.opcode in _SAME and one.operands:
        one = body.get(one.operands[0])
    return one


def _number(one: Instruction | None, body: Mapping[str, Instruction]) -> int | None:
    one = _plain(one, body)
    if one is None or one.opcode != "constant":
        return None
    literal = _LITERAL.search(one.line)
    return int(literal[1]) if literal else None


def _by_name(instructions: Sequence[Instruction]) -> dict[str, Instruction]:
    return {one.name: one for one in instructions}


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if named is None:
        return None
    end = _end(line, named.end(), " ")
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    shapes = tuple(
        (dtype, tuple(int(size) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(line[named.end() : end])
        if dtype in BITS
    )
    arguments = line[opcode.end() : _end(line, opcode.end(), ")")]
    operands = tuple(_OPERAND.findall(arguments))
    return Instruction(named[2], opcode[1], shapes, operands, line, named[1] is not None)


def _end(line: str, start: int, mark: str) -> int:
    """Where `mark` stands next, outside of all brackets that open after `start`."""
    depth = 0
    for place in range(start, len(line)):
        character = line[place]
        if depth == 0 and character == mark:
            return place
        depth += (character in "([{") - (character in ")]}")
    return len(line)
