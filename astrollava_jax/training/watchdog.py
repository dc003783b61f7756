"""The watched side of the watchdog: tells what is waited for, and how long that may take.

A process that hangs with the interpreter's lock held, or that is stopped, cannot watch itself: its
parent does (`cli.supervisor`). What it may expect stands in a page of memory that both see, which
costs either of them next to nothing.
"""

import collections
import contextlib
import json
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from astrollava_jax import files
from astrollava_jax.config import config

PAGE = "ASTROLLAVA_HEARTBEAT"
"""`FD:PID`: the page of memory, and the process that writes it; `cli` sets it."""

Phase = Literal["start", "input", "step", "profile", "checkpoint", "evaluate", "log", "end"]

_STEPS = 64
_PROGRESS_BYTES = 1 << 16
"""What a save that goes on moves at least between two looks, and telling of it does not."""

Seconds = Annotated[float, Field(gt=0)]

Count = Callable[[int], int | None]
"""Adds to a number that all processes of a run see, and gives it; None while nobody knows it."""


@config
class WatchdogConfig:
    """After how long a run that makes no progress is ended, with the stacks of its threads."""

    floor_seconds: Seconds = 60.0
    """At least so long,"""
    factor: Seconds = 10.0
    """and so many times the median step."""
    first_step_seconds: Seconds = 3600.0
    """For the start, and the first time of everything: what is compiled, is so then."""


class Heart:
    """Beats where something else is waited for; without a parent that listens, to no effect."""

    def __init__(self, config: WatchdogConfig):
        self._config = config
        self._processes = 1
        self._together: Count = lambda _: None
        self._page = _page()
        self._phase, self._detail, self._began = "start", "", time.monotonic()
        self._moved = self._began
        self._done: set[str] = set()
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._input_seconds = 0.0
        self._steps: collections.deque[float] = collections.deque(maxlen=_STEPS)
        self._lock = threading.Lock()
        self.beat("start")
        if self._page is not None:
            threading.Thread(target=self._follow, name="heart", daemon=True).start()

    def join(self, processes: int, together: Count) -> None:
        """The run has so many processes, and together they count how often bytes have moved."""
        self._together, self._processes = together, processes

    def beat(self, phase: Phase, detail: str = "") -> None:
        """From now on, this is what is waited for."""
        with self._lock:
            now = time.monotonic()
            self._count(now - self._began)
            self._spent[self._phase] += now - self._began
            if phase != "start":
                self._done.add(self._phase)
            self._phase, self._detail, self._began = phase, detail, now
            self._tell(now)

    def spent(self) -> dict[str, float]:
        """Seconds by what was waited for in them, until now."""
        with self._lock:
            running = time.monotonic() - self._began
            return {**self._spent, self._phase: self._spent[self._phase] + running}

    def watched(self, phase: Phase, hook: Callable[[Any], None]) -> Callable[[Any], None]:
        """A hook that says what it is when it is called."""

        def call(event: Any) -> None:
            self.beat(phase, f"after step {event.progress.step}")
            hook(event)

        return call

    def bound(self) -> float:
        """How long anything that is not done for the first time may take."""
        median = statistics.median(self._steps) if self._steps else 0.0
        return max(self._config.floor_seconds, self._config.factor * median)

    def close(self) -> None:
        """Nothing is expected any more."""
        self.beat("end")
        self._page = None

    def _count(self, seconds: float) -> None:
        """Adds what has ended to the steps' durations; the first one, which compiles, is none."""
        if self._phase == "input":
            self._input_seconds = seconds
        elif self._phase == "step" and "step" in self._done:
            self._steps.append(self._input_seconds + seconds)

    def _tell(self, moved: float) -> None:
        """Writes what is waited for; the last progress was then, or is known to be later."""
        self._moved = max(self._moved, moved)
        if self._page is None:
            return
        limit = self.bound()
        if self._phase not in self._done:
            limit = max(limit, self._config.first_step_seconds)
        facts = {
            "phase": self._phase,
            "detail": self._detail[:200],
            "at": self._moved,
            "processes": self._processes,
            "limit": None if self._phase == "end" else limit,
            "nothing_to_save": self._nothing_to_save(),
        }
        self._page[:] = json.dumps(facts).encode().ljust(len(self._page), b"\0")

    def _nothing_to_save(self) -> bool:
        """Whether who is asked to stop may go at once: until a step is done, here or elsewhere."""
        if self._processes > 1:
            return self._phase in ("start", "end")
        return "step" not in self._done or self._phase == "end"

    def _follow(self) -> None:
        """Takes bytes of a checkpoint that move, in any process of the run, for progress.

        A slow disk is no hang, nor is a peer's for those who wait for it, in whichever phase. Only
        bytes are counted, and never that others move some: processes that wait for each other do
        not keep each other alive. What has moved since the last look did so after it, and a peer's
        after the look before: so the bound begins no later than the last byte moved.
        """
        pause = min(5.0, self._config.floor_seconds / 6)
        before, looked, seen = _bytes_moved(), time.monotonic(), self._together(0)
        while self._page is not None:
            time.sleep(pause)
            now, moved = time.monotonic(), _bytes_moved()
            own = self._phase == "checkpoint" and moved - before > _PROGRESS_BYTES
            count = self._together(int(own))
            if own or (None not in (seen, count) and count != seen):
                with self._lock:
                    self._tell(looked if own else looked - pause)
            before, looked, seen = moved, now, count if count is not None else seen


def _page() -> mmap.mmap | None:
    number, _, process = os.environ.get(PAGE, "").partition(":")
    return mmap.mmap(int(number), 0) if process == str(os.getpid()) else None


def _bytes_moved() -> int:
    """What this process has read and written so far, where the system tells."""
    with contextlib.suppress(OSError):
        lines = files.read_text("/proc/self/io").splitlines()
        counts = {name: int(value) for name, value in (line.split(":") for line in lines)}
        return counts["rchar"] + counts["wchar"]
    return 0
