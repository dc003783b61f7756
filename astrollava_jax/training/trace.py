"""A trace of some steps by JAX's profiler: what the host and its devices did, and when."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from astrollava_jax import files
from astrollava_jax.training.watchdog import Heart

FOLDER = "profile"
"""Below the run directory."""


def annotated(step: int) -> contextlib.AbstractContextManager[None]:
    """Marks a step for any profiler that listens; costs nothing when none does."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)


class Trace:
    """Traces the steps from `first` to `last`, both included, as they are counted in the log.

    Each process writes its own, for each sees its own devices only: in `process_0`, and so on,
    below the folder. A profiler that fails is told of, and ends nothing: the steps matter more.
    """

    def __init__(
        self, first: int, last: int, folder: str, heart: Heart, tell: Callable[[str], None]
    ):
        if not 1 <= first <= last:
            raise ValueError(
                f"profile {first}:{last}: expected FIRST:LAST, two steps of the run, counted from "
                "1, the first not after the last"
            )
        self._first, self._last, self._heart, self._tell = first, last, heart, tell
        self._folder = files.join(folder, FOLDER, f"process_{jax.process_index()}")
        self._traced: list[int] = []
        self._running = self._done = False

    def expect(self, done: int, total: int) -> None:
        """Says so if none of the steps is among those that this start will do."""
        if self._last <= done or self._first > total:
            self._done = True
            left = f"this start does steps {done + 1} to {total}" if done < total else "all is done"
            self._tell(f"profile {self._first}:{self._last}: nothing will be traced, {left}")

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Surrounds a step."""
        if not self._done and not self._running and self._first <= step <= self._last:
            self._start()
        with annotated(step):
            yield
        if self._running:
            self._traced.append(step)
            if step >= self._last:
                self._stop()

    def close(self) -> None:
        """Writes what is being traced, and says if the range was not reached or not finished."""
        if self._running:
            self._stop()
        if not self._done:
            self._tell(
                f"profile {self._first}:{self._last}: the run ended before, nothing was traced"
            )

    def _start(self) -> None:
        with self._bearing():
            jax.profiler.start_trace(files.make_folder(self._folder))
            self._running = True

    def _stop(self) -> None:
        self._running, self._done = False, True
        self._heart.beat("profile", "writing the trace")
        with self._bearing():
            jax.profiler.stop_trace()
            self._tell_of_steps()

    @contextlib.contextmanager
    def _bearing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._done = True
            self._tell(f"profile {self._first}:{self._last}: cannot be traced: {error}")

    def _tell_of_steps(self) -> None:
        steps = f"{len(self._traced)} of {self._last - self._first + 1} steps"
        self._tell(f"profile {self._first}:{self._last}: {steps} traced, in {self._folder}")
