"""Programs that take steps of training when they are asked to, so that several are timed in turn.

A program is a process. It says once what it is, as a line of JSON on its output; then it reads how
many steps to take, a number a line, and answers each line with what these took. What it or its
libraries print besides goes to stderr.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from astrollava_jax.bench import memory, processor_time

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Turn:
    """What some steps took."""

    seconds: float
    """On the clock, input included."""
    processor_seconds: float
    """User and system time of the program and its workers."""
    losses: list[float]
    """Of each step, before its update."""
    device_bytes: int = 0
    """The most that one device has held since the program began; 0 where it does not tell."""


class Program:
    """A program that waits to be asked.

    Args:
        arguments: of `python -m`.
        variables: of the environment, besides those of this process.

    Attributes:
        facts: what it said of itself once it was ready.

    Raises:
        ValueError: what the program calls a mistake of the user's.
        RuntimeError: if it ends otherwise.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str] | None = None):
        self._name = " ".join(arguments[:1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (variables or {}),
        )
        self._asking: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        try:
            self.facts: Facts = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, steps: int) -> Turn:
        """Has it take some steps."""
        self._line(str(steps))
        return Turn(**self._answer())

    def most_resident(self) -> int:
        """The most memory that it has held so far, in bytes, libraries included."""
        return memory.status(self._process.pid).get("VmHWM", 0)

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._asking.close()
        self._end()
        self._answers.close()

    def _end(self) -> None:
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer is missing, too
            print(text, file=self._asking, flush=True)

    def _answer(self) -> Facts:
        line = self._answers.readline()
        if not line:
            self._end()
            raise RuntimeError(f"{self._name}: ended with {self._process.returncode}")
        found = json.loads(line)
        if "mistake" in found:
            raise ValueError(found["mistake"])
        return found


@contextlib.contextmanager
def asked() -> Iterator[Callable[..., None]]:
    """In a program: gives what answers until nobody asks any more.

    with asked() as answer:
        ...                         # getting ready; a ValueError is told, and ends the program
        answer(facts, step, held)   # step() takes one step and gives its loss, held() device_bytes
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(what: Facts) -> None:
            print(json.dumps(what), file=answers, flush=True)

        def answer(
            facts: Facts, step: Callable[[], float], held: Callable[[], int] = lambda: 0
        ) -> None:
            say(facts)
            for line in sys.stdin:
                before, began = processor_time.tree_seconds(), time.perf_counter()
                losses = [step() for _ in range(int(line))]
                seconds = time.perf_counter() - began
                used = processor_time.tree_seconds() - before
                say(dataclasses.asdict(Turn(seconds, used, losses, held())))

        try:
            yield answer
        except (ValueError, FileNotFoundError) as error:
            say({"mistake": str(error)})
            raise
