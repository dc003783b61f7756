"""What `bench train` has measured: ratios, losses side by side, and what of them is wrong."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from astrollava_jax.bench.train_job import Job
from astrollava_jax.bench.turns import Facts, Turn

TOLERANCE = 1e-4
"""How far losses may be apart in float32, of the loss."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster one is than the other."""

    name: str
    slow: str
    fast: str
    least: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    """To reach, by platform and stage."""


RATIOS = (
    Ratio(
        "as used", "padded", "ours",
        {("cpu", 1): 1.1, ("cpu", 2): 1.1, ("gpu", 1): 2.0, ("gpu", 2): 1.5},
    ),
    Ratio("token for token", "packed", "ours", {("cpu", 1): 0.9, ("cpu", 2): 0.9}),
    Ratio("as used, theirs compiled", "padded-compiled", "ours"),
    Ratio("token for token, theirs compiled", "packed-compiled", "ours"),
    Ratio("theirs, compiled against eager, padded", "padded", "padded-compiled"),
    Ratio("theirs, compiled against eager, packed", "packed", "packed-compiled"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured."""

    steps: int
    """Of a turn."""
    turns: dict[str, list[Turn]]
    """By program; the first one is for warming up."""
    facts: dict[str, Facts]
    """What each program said of itself."""
    resident: dict[str, int]
    """The most memory that each held, in bytes."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a program was not measured to its end."""

    def per_step(self, name: str, clock: bool) -> list[float]:
        """Seconds of a step in each turn but the first."""
        return [
            (turn.seconds if clock else turn.processor_seconds) / self.steps
            for turn in self.turns[name][1:]
        ]

    def ratios(self, ratio: Ratio, clock: bool) -> list[float]:
        """In each turn; none where a program was not measured."""
        if not {ratio.slow, ratio.fast} <= set(self.turns):
            return []
        both = self.per_step(ratio.slow, clock), self.per_step(ratio.fast, clock)
        return [slow / fast for slow, fast in zip(*both)]

    def held(self, name: str) -> int:
        """The most bytes of the device; of the program, where it computes on the processor."""
        return max(turn.device_bytes for turn in self.turns[name]) or self.resident[name]

    def losses(self, name: str) -> list[float]:
        """Of all steps, those of the first turn too."""
        return [loss for turn in self.turns[name] for loss in turn.losses]


def apart(found: Found, other: str) -> float:
    """The largest difference of the losses of ours and of another, of the loss."""
    pairs = zip(found.losses("ours"), found.losses(other), strict=True)
    # A NaN is larger than everything.
    return max((abs(a - b) / abs(b) if a == a and b == b else float("inf")) for a, b in pairs)


def faults(found: Found, job: Job) -> list[str]:
    """Programs that failed, numbers of parameters that differ, and losses that are wrong.

    In float32 they must agree; in bfloat16 they must be finite.
    """
    told = [f"{name}: not measured: {why}" for name, why in found.failed.items()]
    for name in found.turns:
        if not all(map(math.isfinite, found.losses(name))):
            told.append(f"{name}: expected finite losses, found {found.losses(name)}")
    others = [name for name in found.turns if name != "ours"]
    for name in others:
        ours, theirs = found.facts["ours"]["trained"], found.facts[name]["trained"]
        if ours != theirs:
            told.append(f"{name}: trains {theirs} numbers, ours {ours}")
        if job.precision == "float32" and not apart(found, name) <= TOLERANCE:
            told.append(
                f"{name}: losses differ from ours by {apart(found, name):.2g} of the loss, "
                f"expected at most {TOLERANCE:g}"
            )
    return told


def told(found: Found, job: Job, about: Mapping[str, str]) -> list[str]:
    """The lines of three tables: times, ratios, losses."""
    facts = found.facts["ours"]
    step = {name: facts[name] / facts["steps"] for name in ("samples", "tokens", "useful_flops")}
    lines = [
        f"{'seconds of a step':<38}{'processors':<34}{'clock':<34}samples/s  tokens/s  "
        "useful GFLOP/s  GB held"
    ]
    for name, what in about.items():
        if name not in found.turns:
            continue
        clock = statistics.median(found.per_step(name, clock=True))
        rates = f"{step['samples'] / clock:>9.2f}  {step['tokens'] / clock:>8.0f}"
        lines.append(
            f"  {what:<36}{_spread(found.per_step(name, clock=False)):<34}"
            f"{_spread(found.per_step(name, clock=True)):<34}{rates}  "
            f"{step['useful_flops'] / clock / 1e9:>14.1f}  {found.held(name) / 1e9:>7.1f}"
        )
    if facts["peak_flops"]:
        clock = statistics.median(found.per_step("ours", clock=True))
        lines.append(f"  MFU of ours: {step['useful_flops'] / clock / facts['peak_flops']:.1%}")
    return lines + _ratios(found, job) + _losses(found, job)


def _ratios(found: Found, job: Job) -> list[str]:
    platform = found.facts["ours"]["platform"]
    lines = [f"{'times faster, turn by turn':<44}{'processors':<34}clock"]
    for ratio in RATIOS:
        values = {clock: found.ratios(ratio, clock) for clock in (False, True)}
        if not values[True]:
            continue
        least = ratio.least.get((platform, job.stage))
        goal = ""
        if least is not None:  # on a CPU all programs use the processors: both clocks must show it
            judged = min(statistics.median(values[c]) for c in ({platform != "cpu", True}))
            goal = f"  to reach: {least:g}, {'reached' if judged >= least else 'NOT reached'}"
        shown = "".join(f"{_spread(values[clock]):<34}" for clock in (False, True))
        lines.append(f"  {ratio.name:<42}{shown}{goal}".rstrip())
    return lines


def _losses(found: Found, job: Job) -> list[str]:
    others = [name for name in found.turns if name != "ours"]
    lines = [f"{'loss of step':<16}" + "".join(f"{name:<20}" for name in found.turns)]
    for step, row in enumerate(zip(*map(found.losses, found.turns)), 1):
        lines.append(f"  {step:<14}" + "".join(f"{loss:<20.9g}" for loss in row))
    rule = f"at most {TOLERANCE:g}" if job.precision == "float32" else "no rule in bfloat16"
    differences = "".join(f"{apart(found, name):<20.2g}" for name in others)
    lines.append(f"  {'apart, of it':<34}{differences}{rule}")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})"
