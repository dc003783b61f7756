"""The way to the first step: it is compiled while the weights are read; and what took how long."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from astrollava_jax import compiler
from astrollava_jax.run.stage import Stage


class Ahead:
    """A step that is compiled in a thread, and waited for when it is first called.

    Args:
        compiled: compiles it.
        began: when the run was begun to be opened, on the clock of `time.monotonic`.
        tell: is told of the way to the first step, when that is done.
    """

    def __init__(
        self, compiled: Callable[[], Callable[..., Any]], began: float, tell: Callable[[str], None]
    ):
        self.parts: dict[str, float] = {}
        """Seconds to the end of the first step, by what was waited for; empty until then."""
        self._marks, self._tell = [began, time.monotonic()], tell
        self._step: Callable[..., Any] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(compiled,), name="compile")
        self._thread.start()

    def __call__(self, *arguments: Any) -> Any:
        """The step; the first time it waits until it is compiled.

        Raises:
            Exception: whatever the compilation ended with.
        """
        if self.parts:
            return self._step(*arguments)  # pyright: ignore
        self._marks.append(time.monotonic())
        self._thread.join()
        if self._step is None:
            assert self._error is not None
            raise self._error
        self._marks.append(time.monotonic())
        found = jax.block_until_ready(self._step(*arguments))
        self._marks.append(time.monotonic())
        spans = (after - before for before, after in zip(self._marks, self._marks[1:]))
        self.parts.update(zip(("open", "weights", "compile", "first_step"), spans))
        self._tell(told(self.parts))
        return found

    def _run(self, compiled: Callable[[], Callable[..., Any]]) -> None:
        try:
            self._step = compiled()
        except BaseException as error:
            self._error = error


def ahead(
    stage: Stage, arguments: tuple[Any, ...], own: compiler.Options, began: float,
    tell: Callable[[str], None],
) -> Stage:  # fmt: skip
    """The stage, whose step begins to be compiled now.

    Args:
        stage: it runs the same program as before.
        arguments: shapes of what the step takes, with their layout.
        own: the run's own options for the compiler.
        began: as for `Ahead`.
        tell: as for `Ahead`.
    """

    def compiled() -> Callable[..., Any]:
        with stage.active(), compiler.heard(own):
            return stage.step.lower(*arguments).compile()  # pyright: ignore

    step = Ahead(compiled, began, tell)
    return dataclasses.replace(stage, step=step, start=step.parts)


def told(parts: dict[str, float]) -> str:
    """The way to the first step as a line: what was waited for, in seconds.

    Compiling goes on while weights are read: what is told of it came after them.
    """
    shown = ", ".join(f"{name.replace('_', ' ')} {part:.1f}" for name, part in parts.items())
    return f"ready in {sum(parts.values()):.1f} s: {shown}"
