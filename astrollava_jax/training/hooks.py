"""What happens after a step: guards, held-out loss, checkpoints. None knows another."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from astrollava_jax.sharding import agree
from astrollava_jax.training import anomaly
from astrollava_jax.training.checkpoint import Checkpoints, NotFinite
from astrollava_jax.training.loop import Diverged, Event
from astrollava_jax.training.state import TrainState


class Guard:
    """Stops a run whose records are worse than was allowed."""

    def __init__(self, allowed: float, samples: int):
        self.limit = allowed * samples
        self.samples = samples

    def __call__(self, event: Event) -> None:
        """Counts.

        Raises:
            ValueError: when more records were unreadable than allowed; names the last ones.
        """
        if agree(event.progress.skipped) > self.limit:
            raise ValueError(
                f"{event.progress.skipped} unreadable record(s) of {self.samples} in the run, more "
                f"than bad_records.max_fraction allows ({self.limit:.0f}): mend them, or raise it "
                "and start the run again; the last:\n  " + "\n  ".join(event.delivery.faults[-10:])
            )


class BadSteps:
    """Says when steps with bad numbers lead nowhere."""

    def __init__(self, max_in_row: int):
        self.max_in_row = max_in_row

    def __call__(self, event: Event) -> None:
        """Looks at the step.

        Raises:
            Diverged: at every `max_in_row`-th bad step without a good one between, and as soon as
                the weights or moments themselves are not finite.
        """
        in_row = event.progress.bad_in_row
        if in_row == 0 or event.rolled_back is not None:
            return
        if event.metrics["bad"] == anomaly.BROKEN or in_row % self.max_in_row == 0:
            raise Diverged(
                f"step {event.progress.step}: {anomaly.why(event.metrics)}; bad steps in a row: "
                f"{in_row}"
            )


class Evaluate:
    """Computes the held-out loss every so many steps, and after the last.

    `evaluate` gives the loss and the records that could not be read, or None if it was broken off;
    `found` is told of them.
    """

    def __init__(
        self,
        every_steps: int,
        evaluate: Callable[[TrainState], tuple[float, Sequence[str]] | None],
        found: Callable[[int, float, Sequence[str]], None],
    ):
        self.every_steps, self._evaluate, self._found = every_steps, evaluate, found

    def __call__(self, event: Event) -> None:
        """Evaluates when it is time."""
        if event.last or event.progress.step % self.every_steps == 0:
            self._tell(event.progress.step, event.state)

    def make_up(self, step: int, state: TrainState, done: bool) -> None:
        """Evaluates a step from which a run goes on, if it was to be and is not done."""
        if step > 0 and step % self.every_steps == 0 and not done:
            self._tell(step, state)

    def _tell(self, step: int, state: TrainState) -> None:
        told = self._evaluate(state)
        if told is not None:
            self._found(step, *told)


class Save:
    """Saves a checkpoint by the clock or by the count of steps, and after the last step.

    While steps are bad, nothing new is there to save: what is due then waits for the next good one,
    lest the checkpoints before be pushed out. What was rolled back is saved at once, with the
    position in the data that it has now.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: dict[str, Any],
        every_seconds: float | None,
        every_steps: int | None,
    ):
        self._checkpoints, self._config = checkpoints, config
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self._saved_at, self._due = time.monotonic(), False
        self._saved_step: int | None = None

    def __call__(self, event: Event) -> None:
        """Saves when it is time.

        Raises:
            Diverged: if the state is not finite.
        """
        if self.every_steps is not None and event.progress.step % self.every_steps == 0:
            self._due = True
        if self.every_seconds is not None:
            self._due |= agree(time.monotonic() - self._saved_at >= self.every_seconds)
        due = self._due and event.progress.bad_in_row == 0
        if due or event.last or event.rolled_back is not None:
            self._save(event)

    def now(self, event: Event) -> None:
        """Saves, unless this step is, and returns when it stands on the disk.

        Raises:
            Diverged: if the state is not finite.
        """
        if self._saved_step != event.progress.step:
            self._save(event)
        self._checkpoints.wait()

    def _save(self, event: Event) -> None:
        try:
            self._checkpoints.save(event.state, event.progress, self._config)
        except NotFinite as error:
            raise Diverged(f"step {event.progress.step}: {error}") from error
        self._saved_at, self._due = time.monotonic(), False
        self._saved_step = event.progress.step
