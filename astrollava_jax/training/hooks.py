"""What happens after a step: guards, held-out loss, checkpoints, the log. None knows another."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from astrollava_jax.sharding import agree
from astrollava_jax.training import anomaly
from astrollava_jax.training.checkpoint import Checkpoints, NotFinite
from astrollava_jax.training.loop import Delivery, Diverged, Event
from astrollava_jax.training.metrics import JsonLines, TensorBoard
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


class Log:
    """The bar, the step line, `log.jsonl` and TensorBoard: one set of facts in four forms."""

    def __init__(
        self,
        console: Console,
        lines: JsonLines,
        board: TensorBoard | None,
        *,
        every_steps: int,
        attempt: int,
        chips: int,
        first_group: str,
        checkpoints: Checkpoints,
        work: Callable[[Event], float | None],
        records: Callable[[int], Sequence[str]],
        start: Mapping[str, float] | None = None,
    ):
        self._console, self._lines, self._board = console, lines, board
        self.every_steps, self.attempt, self.chips = every_steps, attempt, chips
        self._first_group, self._checkpoints, self._work = first_group, checkpoints, work
        self._records = records
        self._start = {} if start is None else start
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None  # from the first step of this attempt on

    def __call__(self, event: Event) -> None:
        """Writes the step's facts."""
        facts = self._facts(event)
        self._lines.write(facts)
        if self._board is not None:
            self._board.write(facts["step"], facts)
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=event.total_steps, loss="")
        self._bar.update(self._task, completed=facts["step"], loss=f"loss {facts['loss']:.4f}")
        if event.last or "bad" in facts or facts["step"] % self.every_steps == 0:
            self._console.print(_line(facts, event.total_steps), highlight=False, soft_wrap=True)
        if "bad" in facts:
            self._console.print(_bad_line(facts, event), highlight=False, soft_wrap=True)
        self._name(event.delivery.faults)

    def held_out(self, step: int, loss: float, faults: Sequence[str]) -> None:
        """Writes what the held-out evaluation found."""
        facts: dict[str, Any] = {"held_out_loss": loss, "held_out_skipped_records": len(faults)}
        facts |= {"held_out_faults": list(faults)} if faults else {}
        self._lines.write({"step": step, "attempt": self.attempt, **facts})
        if self._board is not None:
            self._board.write(step, facts)
        self._console.print(f"step {step}: held_out_loss {loss}", highlight=False)
        self._name(faults)

    def close(self) -> None:
        """Leaves the bar and closes the files."""
        self._bar.stop()
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def _name(self, faults: Sequence[str]) -> None:
        for fault in faults:
            self._console.print(f"unreadable record, loss off: {fault}", markup=False)

    def _facts(self, event: Event) -> dict[str, Any]:
        metrics, seconds = event.metrics, event.seconds
        rates = {name: value for name, value in metrics.items() if name.startswith("lr/")}
        utilisation = self._work(event)
        return {
            "step": event.progress.step,
            "attempt": self.attempt,
            "loss": metrics["loss"],
            "learned_tokens": int(metrics["learned_tokens"]),
            "grad_norm": metrics["grad_norm"],
            "lr": rates[f"lr/{self._first_group}"],
            **(rates if len(rates) > 1 else {}),
            "seconds": seconds,
            "samples_per_second": event.delivery.samples / seconds,
            "tokens_per_second_per_chip": event.delivery.tokens / seconds / self.chips,
            "mfu": utilisation,
            "input_wait": event.input_wait / seconds,
            "packing": event.delivery.filled,
            "skipped_records": event.progress.skipped,
            "bad_steps": event.progress.bad,
            "last_good_checkpoint": self._checkpoints.last_good,
            **({"start_seconds": dict(self._start)} if self._start and self._task is None else {}),
            **_faults(event.delivery),
            **({"bad": self._bad(event)} if metrics["bad"] != anomaly.GOOD else {}),
            **({} if event.rolled_back is None else {"rolled_back_to": event.rolled_back}),
        }

    def _bad(self, event: Event) -> dict[str, Any]:
        """What was bad about a step, and of which records it was made."""
        return {
            "why": anomaly.why(event.metrics),
            "loss": event.metrics["loss"],
            "grad_norm": event.metrics["grad_norm"],
            "records": list(self._records(event.progress.position - 1)),
        }


def _bad_line(facts: dict[str, Any], event: Event) -> str:
    records = facts["bad"]["records"]
    more = f" and {len(records) - 10} more, all in log.jsonl" if len(records) > 10 else ""
    return (
        f"BAD NUMBERS in step {facts['step']}, from which nothing was learned: "
        f"{facts['bad']['why']}; bad steps so far: {facts['bad_steps']}, in a row: "
        f"{event.progress.bad_in_row}; records: {', '.join(records[:10])}{more}"
    )


def _faults(delivery: Delivery) -> dict[str, Any]:
    if not delivery.faults:
        return {}
    return {"faults": list(delivery.faults), "fault_kinds": dict(Counter(delivery.fault_kinds))}


def _line(facts: dict[str, Any], total: int) -> str:
    mfu = "" if facts["mfu"] is None else f"  mfu {facts['mfu']:.3f}"
    return (
        f"step {facts['step']}/{total}  loss {np.float32(facts['loss'])}"
        f"  grad_norm {facts['grad_norm']:.4f}  lr {facts['lr']:.3e}"
        f"  {facts['samples_per_second']:.1f} samples/s"
        f"  {facts['tokens_per_second_per_chip']:.0f} tokens/s/chip{mfu}"
        f"  input_wait {facts['input_wait']:.3f}  packing {facts['packing']:.3f}"
    )
