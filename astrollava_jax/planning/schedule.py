"""How long a compiled step takes, by the compiler's own estimates, replayed in schedule order.

A model, not a measurement: `roofline.reliance` says how far its times were ever checked. It leaves
out the input pipeline, the host, checkpoints, stragglers, and what compute and transfers take of
each other's memory bandwidth.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from astrollava_jax.planning.hlo import Exchange, exchange, results
from astrollava_jax.planning.instructions import (
    ENTRY,
    Computations,
    Instruction,
    computations,
    num_bytes,
    rounds,
)
from astrollava_jax.planning.kernels import kernel_seconds
from astrollava_jax.planning.network import REACHED, exchange_seconds, group_size, ring_speed
from astrollava_jax.planning.topologies import Chip

_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id",
    "after-all", "opt-barrier",
)  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls that move nothing."""
_COPIES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
"""What a pair of instructions moves between a chip's memories."""
_HOST = "S(5)"  # the memory space of the host, in a layout
_LONGEST = 3600.0
"""Seconds that no instruction takes: an estimate above it is none."""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_PARTITIONS = re.compile(r"^HloModule .*\bnum_partitions=(\d+)")
_ROUTE = re.compile(r"source_target_pairs=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Modelled:
    """The time of one step on one chip, in parts that add up to it."""

    compute_seconds: float
    kernel_seconds: float
    """Of Pallas kernels, by their FLOPs."""
    exposed_seconds: Mapping[str, float]
    """Waiting for other chips, by the kind of collective."""
    copy_seconds: float
    """Waiting for copies between a chip's memories."""
    unknown: Mapping[str, int]
    """Opcode -> how many instructions have no time here and are counted as none."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.busy_seconds + self.copy_seconds + sum(self.exposed_seconds.values())

    @property
    def busy_seconds(self) -> float:
        """Compute and kernels: what the step would take if nothing were ever waited for."""
        return self.compute_seconds + self.kernel_seconds


def modelled(text: str, chip: Chip, ring: float | None = None) -> Modelled:
    """The time of a scheduled TPU program.

    Nothing in the text is an error: what is not understood is counted as unknown.

    Args:
        text: of the compiled program.
        chip: what runs it.
        ring: bytes per second of a collective, see `ring_speed`; unless given, that of a slice
            which has all axes of the chip and is not closed.
    """
    replay = _Replay(computations(text), chip, ring or ring_speed(chip), _chips(text))
    return replay.of(ENTRY)


def _chips(text: str) -> int | None:
    found = _PARTITIONS.match(text)
    return int(found[1]) if found else None


@dataclasses.dataclass
class _Clock:
    """The replay of one computation, from its first instruction on."""

    now: float = 0.0
    compute: float = 0.0
    kernels: float = 0.0
    copies: float = 0.0
    exposed: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    unknown: Counter[str] = dataclasses.field(default_factory=Counter)
    free: dict[str, float] = dataclasses.field(default_factory=dict)
    """Line of transfers -> when it has done all that it was given."""
    running: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    """What was started and is not yet awaited: its kind, and when it ends."""

    def start(self, key: str, kind: str, line: str, seconds: float) -> None:
        """Gives a line something to do."""
        end = max(self.now, self.free.get(line, 0.0)) + seconds
        self.free[line] = end
        self.running[key] = kind, end

    def wait(self, key: str) -> None:
        """Lets the clock stand until something has ended."""
        kind, end = self.running.pop(key)
        late = max(0.0, end - self.now)
        self.now += late
        if kind in _COPIES:
            self.copies += late
        else:
            self.exposed[kind] += late

    def add(self, parts: Modelled, times: int) -> None:
        """Runs another computation, so many times."""
        self.now += parts.seconds * times
        self.compute += parts.compute_seconds * times
        self.kernels += parts.kernel_seconds * times
        self.copies += parts.copy_seconds * times
        for kind, seconds in parts.exposed_seconds.items():
            self.exposed[kind] += seconds * times
        self.unknown.update(parts.unknown)

    def parts(self) -> Modelled:
        """What it has come to. What was never awaited hid all of its time, or none: unknown."""
        unknown = self.unknown + Counter(f"{kind}-start" for kind, _ in self.running.values())
        exposed = {kind: seconds for kind, seconds in self.exposed.items() if seconds}
        return Modelled(self.compute, self.kernels, exposed, self.copies, dict(unknown))


class _Replay:
    """Walks the computations of one program."""

    def __init__(self, bodies: Computations, chip: Chip, ring: float, chips: int | None):
        self.bodies, self.chip, self.ring, self.chips = bodies, chip, ring, chips
        self.done: dict[str, Modelled] = {}

    def of(self, name: str) -> Modelled:
        """One computation, run once."""
        if name not in self.done:
            clock = _Clock()
            self.done[name] = clock.parts()  # for one that calls itself, which none does
            instructions = self.bodies.get(name, ())
            by_name = {one.name: one for one in instructions}
            for one in instructions:
                self.step(clock, one, instructions, by_name)
            self.done[name] = clock.parts()
        return self.done[name]

    def step(
        self, clock: _Clock, one: Instruction, around: Sequence[Instruction],
        by_name: Mapping[str, Instruction],
    ) -> None:  # fmt: skip
        """Lets one instruction pass."""
        exchanged = exchange(one, self.bodies)
        if one.opcode == "while":
            times = rounds(one, around, self.bodies)
            clock.unknown["while"] += times is None
            clock.add(self.of(one.called("body") or ""), 1 if times is None else times)
        elif one.opcode in ("call", "conditional") and one.calls:
            clock.add(max(map(self.of, one.calls), key=lambda parts: parts.seconds), 1)
        elif exchanged is not None:
            self.transfer(clock, exchanged)
        elif one.opcode.removesuffix("-start") in _COPIES and one.opcode.endswith("-start"):
            self.copy(clock, one)
        elif one.opcode.removesuffix("-done") in _COPIES and one.opcode.endswith("-done"):
            self.awaited(clock, "".join(one.operands[:1]), one.opcode)
        elif (seconds := self.kernel(one, by_name)) is not None:
            clock.now += seconds
            clock.kernels += seconds
        elif (seconds := self.compute(one)) is not None:
            clock.now += seconds
            clock.compute += seconds
        else:
            clock.unknown[one.opcode] += 1

    def transfer(self, clock: _Clock, exchanged: Exchange) -> None:
        """A collective: beside the compute if it only starts here, else all of it is waited for."""
        if exchanged.role == "done":
            self.awaited(clock, exchanged.key, f"{exchanged.kind}-done")
            return
        seconds = self.transfer_seconds(exchanged)
        if seconds is None:
            clock.unknown[exchanged.kind] += 1
            seconds = 0.0
        line = "ring"
        if exchanged.kind == "collective-permute":
            route = _ROUTE.search(exchanged.line)
            line = route[1] if route else "ring"
        clock.start(exchanged.key, exchanged.kind, line, seconds)
        if exchanged.role == "whole":
            clock.wait(exchanged.key)

    def transfer_seconds(self, exchanged: Exchange) -> float | None:
        """None if the text does not tell the groups, or the formula does not hold for the kind."""
        size = num_bytes(exchanged.shapes)
        if exchanged.kind == "collective-permute":
            link = REACHED * self.chip.ici_bytes_per_second
            return exchange_seconds(exchanged.kind, size, 2, link)
        group = group_size(exchanged.line, self.chips)
        if group is None or exchanged.kind in ("collective-broadcast", "ragged-all-to-all"):
            return None
        whole = size * group if exchanged.kind == "reduce-scatter" else size
        return exchange_seconds(exchanged.kind, whole, group, self.ring)

    def copy(self, clock: _Clock, one: Instruction) -> None:
        """A transfer between the chip's memories; one with the host's has no known speed."""
        kind = one.opcode.removesuffix("-start")
        if _HOST in one.line.partition(f" {one.opcode}(")[0]:
            clock.unknown[f"{kind} with the host"] += 1
            seconds = 0.0
        else:
            seconds = num_bytes(results(one)) / self.chip.hbm_bytes_per_second
        clock.start(one.name, kind, "memory", seconds)

    def awaited(self, clock: _Clock, key: str, opcode: str) -> None:
        """The end of something; unknown if nothing here has started it."""
        if key in clock.running:
            clock.wait(key)
        else:
            clock.unknown[opcode] += 1

    def kernel(self, one: Instruction, by_name: Mapping[str, Instruction]) -> float | None:
        """Seconds, if it is a kernel whose FLOPs are known."""
        if one.opcode != "custom-call" or "tpu_custom_call" not in one.line:
            return None
        return kernel_seconds(one, by_name, self.chip)

    def compute(self, one: Instruction) -> float | None:
        """Seconds by the compiler's estimate; none for what does next to nothing."""
        cycles = _CYCLES.search(one.line)
        if cycles:
            seconds = int(cycles[1]) / self.chip.clock_hertz
            return seconds if seconds < _LONGEST else None
        target = _TARGET.search(one.line)
        if one.opcode in _FREE or (target and target[1] in _FREE_CALLS):
            return 0.0
        scalar = one.opcode != "custom-call" and all(math.prod(dims) == 1 for _, dims in one.shapes)
        return 0.0 if scalar else None
