"""What surrounds the steps of a run, wired: its hooks, its log, its way back to a checkpoint."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import plain
from astrollava_jax.params import Params
from astrollava_jax.run import directory, held
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.ready import Ready
from astrollava_jax.run.records import Data, evaluation_batches, of_all, record_names
from astrollava_jax.run.recovery import Recovery
from astrollava_jax.run.stage import Model, Stage, abstract_state
from astrollava_jax.sharding import agree
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.flops import Work, peak_flops, sizes_of, useful_flops
from astrollava_jax.training.goodput import Goodput
from astrollava_jax.training.hooks import BadSteps, Evaluate, Guard, Save
from astrollava_jax.training.log import Log
from astrollava_jax.training.loop import Event, Hook, Surroundings
from astrollava_jax.training.metrics import (
    JsonLines,
    TensorBoard,
    last_attempt,
    read_lines,
    read_log,
)
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.preemption import Stop
from astrollava_jax.training.state import TrainState
from astrollava_jax.training.trace import Trace, annotated
from astrollava_jax.training.watchdog import Heart

LOG = "log.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that can begin, and who watches it."""

    run: RunConfig
    ready: Ready
    console: Console
    heart: Heart
    stop: Stop
    displaced: Callable[[], str | None]
    """Says, in process 0, why the run directory's lock is gone, or None."""
    began: float
    """When the command began, in seconds since 1970."""
    trace: Trace | None
    """What the profiler is to see."""

    def checkpoints(self) -> Checkpoints:
        """Those of the run directory, which is begun."""
        folder, kept, run = self.run.out, self.run.checkpoint, directory.run_name(self.run.out)
        return Checkpoints(
            files.join(folder, directory.CHECKPOINTS),
            kept.keep,
            kept.keep_seconds,
            self.console.print,
            run=run,
            lost=functools.partial(held.lost, folder, run, self.displaced),
            good=functools.partial(held.note_good, folder),
        )

    def surroundings(
        self, checkpoints: Checkpoints, log: Log | None, evaluate: Evaluate | None
    ) -> Surroundings:
        """What surrounds the steps; the log tells of the checkpoint made before it."""
        run, heart = self.run, self.heart
        kept = run.checkpoint
        save = Save(checkpoints, plain(run), kept.every_seconds, kept.every_steps)
        hooks: list[Hook] = [
            Guard(run.bad_records.max_fraction, self.ready.data.samples),
            BadSteps(run.bad_numbers.max_in_row),
        ]
        hooks += [] if evaluate is None else [heart.watched("evaluate", evaluate)]
        hooks += [heart.watched("checkpoint", save)]
        hooks += [] if log is None else [heart.watched("log", log)]
        return Surroundings(
            hooks=hooks,
            recover=self._recovery(checkpoints, log),
            save=heart.watched("checkpoint", save.now),
            heart=heart,
            stop=self.stop,
            step=annotated if self.trace is None else self.trace.around,
        )

    def _recovery(self, checkpoints: Checkpoints, log: Log | None) -> Recovery:
        return Recovery(
            checkpoints=checkpoints,
            like=abstract_state(self.ready.stage, self.run),
            max_in_row=self.run.bad_numbers.max_in_row,
            heart=self.heart,
            records=functools.partial(record_names, self.ready.data),
            log=log or (lambda event: None),
            tell=self.console.print,
        )

    def evaluation(self, frozen: Params, log: Log | None) -> Evaluate | None:
        """The held-out loss, if the run wants it."""
        stage, data = self.ready.stage, self.ready.held_out
        if self.run.evaluate is None or data is None:
            return None

        def evaluate(state: TrainState) -> tuple[float, list[str]] | None:
            return held_out_loss(stage, data, state, frozen, self.heart, self.stop)

        found = (lambda *_: None) if log is None else log.held_out
        return Evaluate(self.run.evaluate.every_steps, evaluate, found)

    def evaluated(self, step: int) -> bool:
        """Whether the log has the held-out loss of a step."""
        facts = read_log(files.join(self.run.out, LOG))
        return agree(any(line["step"] == step and "held_out_loss" in line for line in facts))

    def log(self, checkpoints: Checkpoints, done: int) -> Log | None:
        """What process 0 keeps for all; the run goes on after so many steps."""
        if jax.process_index() > 0:
            return None
        run, ready = self.run, self.ready
        path = files.join(run.out, LOG)
        attempt = last_attempt(path) + 1
        goodput = Goodput(read_lines(path))
        goodput.begin(self.began, done + 1)
        if attempt > 1:
            self.console.print(goodput.told())
        board = TensorBoard(files.join(run.out, "tensorboard")) if run.log.tensorboard else None
        return Log(
            self.console,
            JsonLines(path),
            board,
            every_steps=run.log.every_steps,
            attempt=attempt,
            chips=jax.device_count(),
            first_group=run.optimizer.groups[0].name,
            checkpoints=checkpoints,
            work=_utilisation(ready.stage.model, ready.data),
            records=functools.partial(record_names, ready.data),
            start=ready.stage.start,
            remat=ready.stage.remat,
            goodput=goodput,
            began=self.began,
            spent=self.heart.spent,
        )


def held_out_loss(
    stage: Stage, data: Data, state: TrainState, frozen: Params, heart: Heart, stop: Stop
) -> tuple[float, list[str]] | None:
    """The mean loss of all learned tokens of the held-out records, and those not to be read.

    None if the run is asked to stop meanwhile: it is made up for when the run goes on.
    """
    total, learned, faults = 0.0, 0.0, []
    for number, (batch, unreadable) in enumerate(evaluation_batches(data, stage)):
        if stop.reason is not None:
            return None
        heart.beat("evaluate", f"held-out batch {number + 1} of {data.plan.total_steps}")
        found, count = stage.evaluate(state.trainable, frozen, batch)
        total, learned = total + float(found), learned + float(count)
        faults += unreadable
    return total / max(learned, 1.0), of_all(faults, stage)


def _utilisation(model: Model, data: Data):
    """MFU of a step, or None where the chip's peak is not known."""
    peak = peak_flops()
    sizes = sizes_of(model.shapes)
    trains = {address: fate != FROZEN for address, fate in model.fates.items()}

    def utilisation(event: Event) -> float | None:
        if peak is None:
            return None
        images = sum(slot.images for row in data.plan[event.progress.position - 1] for slot in row)
        work = Work(
            tokens=event.delivery.tokens,
            learned=int(event.metrics["learned_tokens"]),
            attended=event.delivery.attended,
            images=images,
        )
        return useful_flops(model.config, sizes, trains, work) / event.seconds / peak

    return utilisation
