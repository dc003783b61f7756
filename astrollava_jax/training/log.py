"""What a run says of its steps while it runs, and what stays of that."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from astrollava_jax.training import anomaly
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.goodput import Goodput
from astrollava_jax.training.loop import Delivery, Event
from astrollava_jax.training.metrics import JsonLines, TensorBoard


class Log:
    """The bar, the step line, `log.jsonl` and TensorBoard: one set of facts in four forms.

    Args:
        console: where lines are printed.
        lines: `log.jsonl`.
        board: TensorBoard, if it is wanted.
        every_steps: how often the step line is printed.
        attempt: which start of the run this is, from 1 on.
        chips: how many compute.
        first_group: the group of parameters whose rate is told.
        checkpoints: those that are written.
        work: gives the utilisation of a step.
        records: gives the names of a step's records.
        goodput: what the log told of the time until this attempt, which it knows to have begun.
        began: when this attempt began, in seconds since 1970.
        spent: tells the seconds of this attempt by what was waited for in them.
        start: how long the way to the first step took, by its parts; known after that step.
        remat: what is kept of a layer, of which the last bits of a loss may depend.
        clock: tells the seconds since 1970.
    """

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
        goodput: Goodput,
        began: float,
        spent: Callable[[], Mapping[str, float]],
        start: Mapping[str, float] | None = None,
        remat: str | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._console, self._lines, self._board = console, lines, board
        self.every_steps, self.attempt, self.chips = every_steps, attempt, chips
        self._first_group, self._checkpoints, self._work = first_group, checkpoints, work
        self._records, self._goodput, self._began = records, goodput, began
        self._spent, self._clock = spent, clock
        self._start, self._remat = {} if start is None else start, remat
        self._spent_before: Mapping[str, float] = {}
        self._stalled = 0.0  # by checkpoints, since a step line was printed
        self._last: Event | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        """Writes the step's facts."""
        facts = self._facts(event)
        self._lines.write(facts)
        self._last = event
        self._goodput.add(facts)
        self._stalled += facts["checkpoint_seconds"]
        if self._board is not None:
            self._board.write(facts["step"], facts)
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=event.total_steps, loss="")
        self._bar.update(self._task, completed=facts["step"], loss=f"loss {facts['loss']:.4f}")
        if event.last or "bad" in facts or facts["step"] % self.every_steps == 0:
            self._say(_step_line(facts, event.total_steps, self._stalled, self._goodput.share))
            self._stalled = 0.0
        if "bad" in facts:
            self._say(_bad_line(facts, event.progress.bad_in_row))
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
        """Leaves the bar, says what the time of the run was spent on, and closes the files.

        A run that is not at its end leaves a line of what it waited for after its last step.
        """
        self._bar.stop()
        if self._last is not None:
            facts = {"step": self._last.progress.step, "attempt": self.attempt, **self._time()}
            self._goodput.add(facts)
            self._say(self._goodput.told())
            if not self._last.last:
                self._bear(lambda: self._lines.write(facts))
        self._bear(self._lines.close)
        if self._board is not None:
            self._bear(self._board.close)

    def _bear(self, write: Callable[[], None]) -> None:
        """Tells that the disk takes no more of the log: how the run has ended matters more."""
        try:
            write()
        except OSError as error:
            self._say(f"the end of the log could not be written: {error}")

    def _time(self) -> dict[str, float]:
        """What time it is, and what was waited for besides steps since it was last asked."""
        before, self._spent_before = self._spent_before, self._spent()
        told = {
            f"{phase}_seconds": self._spent_before.get(phase, 0.0) - before.get(phase, 0.0)
            for phase in ("checkpoint", "evaluate")
        }
        return {"time": self._clock(), **told}

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

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
            "device_wait": event.device_wait / seconds,
            **self._time(),
            **(self._beginning() if self._last is None else {}),
            "packing": event.delivery.filled,
            "skipped_records": event.progress.skipped,
            "bad_steps": event.progress.bad,
            "last_good_checkpoint": self._checkpoints.last_good,
            **_faults(event.delivery),
            **({"bad": self._bad(event)} if metrics["bad"] != anomaly.GOOD else {}),
            **({} if event.rolled_back is None else {"rolled_back_to": event.rolled_back}),
        }

    def _beginning(self) -> dict[str, Any]:
        """What the first line of an attempt tells of its start."""
        start = {"start_seconds": dict(self._start)} if self._start else {}
        return {"began": self._began, "remat": self._remat, **start}

    def _bad(self, event: Event) -> dict[str, Any]:
        """What was bad about a step, and of which records it was made."""
        return {
            "why": anomaly.why(event.metrics),
            "loss": event.metrics["loss"],
            "grad_norm": event.metrics["grad_norm"],
            "records": list(self._records(event.progress.position - 1)),
        }


def _faults(delivery: Delivery) -> dict[str, Any]:
    if not delivery.faults:
        return {}
    return {"faults": list(delivery.faults), "fault_kinds": dict(Counter(delivery.fault_kinds))}


def _bad_line(facts: Mapping[str, Any], in_row: int) -> str:
    """What is told of a step from which nothing was learned."""
    records = facts["bad"]["records"]
    more = f" and {len(records) - 10} more, all in log.jsonl" if len(records) > 10 else ""
    return (
        f"BAD NUMBERS in step {facts['step']}, from which nothing was learned: "
        f"{facts['bad']['why']}; bad steps so far: {facts['bad_steps']}, in a row: "
        f"{in_row}; records: {', '.join(records[:10])}{more}"
    )


def _step_line(facts: Mapping[str, Any], total: int, stalled: float, goodput: float) -> str:
    """A step in one line.

    Args:
        facts: the step's line in the log.
        total: steps of the run.
        stalled: seconds that checkpoints have held up the run since the line before.
        goodput: the run's, so far.
    """
    mfu = "" if facts["mfu"] is None else f"  mfu {facts['mfu']:.3f}"
    stall = f"  checkpoint {stalled:.1f} s" if stalled >= 0.05 else ""
    return (
        f"step {facts['step']}/{total}  loss {np.float32(facts['loss'])}"
        f"  grad_norm {facts['grad_norm']:.4f}  lr {facts['lr']:.3e}"
        f"  {facts['samples_per_second']:.1f} samples/s"
        f"  {facts['tokens_per_second_per_chip']:.0f} tokens/s/chip{mfu}"
        f"  input_wait {facts['input_wait']:.3f}  device_wait {facts['device_wait']:.3f}{stall}"
        f"  packing {facts['packing']:.3f}  goodput {goodput:.3f}"
    )
