"""The whole time of a run, over all its attempts, and what it was spent on.

It is told by `log.jsonl` alone, which outlives every restart. An attempt that ended before its
first step has left no line there, and counts as time in which nothing ran.
"""

from collections.abc import Iterable, Mapping
from typing import Any

PARTS = {
    "computed": "computed",
    "lost": "redone or lost",
    "input_wait": "input wait",
    "checkpoint": "checkpoints",
    "evaluate": "held-out loss",
    "start": "start and compile",
    "not_running": "not running",
    "other": "other",
}
"""What time is spent on, and how it is called. Together they are all of it."""


class Goodput:
    """Adds up the lines of a log, in the order in which they were written.

    A step counts as computed as long as nothing has led back to before it. Its seconds are those in
    which it did not wait for input. The first step of an attempt, which is compiled, belongs to the
    start.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """What was spent on each of `PARTS`."""
        self._steps: dict[int, float] = {}
        self._began: float | None = None
        self._until = 0.0
        self._starting = False
        for facts in lines:
            self.add(facts)

    @property
    def share(self) -> float:
        """The part of all time in which steps were computed that counted."""
        total = sum(self.seconds.values())
        return self.seconds["computed"] / total if total else 0.0

    def begin(self, began: float, step: int) -> None:
        """An attempt has begun at a time, in seconds since 1970; `step` is the first that it does.

        Saying it twice changes nothing.
        """
        if began == self._began:
            return
        if self._began is not None:
            # Clocks of two machines may differ.
            self.seconds["not_running"] += max(0.0, began - self._until)
        self._lose(step)
        self._began, self._until = began, max(self._until, began)
        self._starting = True

    def add(self, facts: Mapping[str, Any]) -> None:
        """One line. Lines without a `time`, and those before the first `began`, tell nothing."""
        if "began" in facts:
            self.begin(facts["began"], facts["step"])
        if self._began is None or "time" not in facts:
            return
        left = facts["time"] - self._until
        self._until = facts["time"]
        for part in ("checkpoint", "evaluate"):
            spent = facts.get(f"{part}_seconds", 0.0)
            self.seconds[part] += spent
            left -= spent
        if self._starting:
            self.seconds["start"] += left
            self._starting = "seconds" not in facts
        elif "seconds" in facts:
            self._add_step(facts, left)
        else:
            self.seconds["other"] += left
        if "rolled_back_to" in facts:
            self._lose(facts["rolled_back_to"] + 1)

    def _add_step(self, facts: Mapping[str, Any], left: float) -> None:
        waited = facts["seconds"] * facts["input_wait"]
        self._steps[facts["step"]] = facts["seconds"] - waited
        self.seconds["computed"] += facts["seconds"] - waited
        self.seconds["input_wait"] += waited
        self.seconds["other"] += left - facts["seconds"]
        if "bad" in facts:  # nothing was learned from it
            self._lose(facts["step"])

    def _lose(self, step: int) -> None:
        """What was computed from a step on does not count."""
        for lost in [done for done in self._steps if done >= step]:
            seconds = self._steps.pop(lost)
            self.seconds["computed"] -= seconds
            self.seconds["lost"] += seconds

    def told(self) -> str:
        """All of it in one line."""
        total = sum(self.seconds.values())
        shares = {part: self.seconds[part] / total if total else 0.0 for part in PARTS}
        parts = ", ".join(f"{name} {shares[part]:.1%}" for part, name in PARTS.items())
        return f"goodput {self.share:.1%} of {duration(total)} since the run first began: {parts}"


def duration(seconds: float) -> str:
    """A time in words: `3 h 05 min`, `12 min 40 s`, `9.5 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
