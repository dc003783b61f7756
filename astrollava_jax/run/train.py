"""`train`: one stage from its config to its last checkpoint; it resumes by itself."""

import contextlib
import functools
import logging

import jax
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import plain
from astrollava_jax.params import Params
from astrollava_jax.run import directory, dry_run, opening, processes
from astrollava_jax.run.compiled import keep_compiled
from astrollava_jax.run.config import RunConfig, with_absolute_paths
from astrollava_jax.run.initial import initial, read
from astrollava_jax.run.ready import Ready, begin, get_ready
from astrollava_jax.run.records import (
    Data,
    all_told,
    deliveries,
    evaluation_batches,
    of_all,
    record_names,
)
from astrollava_jax.run.recovery import Recovery
from astrollava_jax.run.stage import Model, Stage, abstract_state
from astrollava_jax.sharding import agree
from astrollava_jax.training import storage
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.flops import Work, peak_flops, sizes_of, useful_flops
from astrollava_jax.training.hooks import BadSteps, Evaluate, Guard, Log, Save
from astrollava_jax.training.loop import Event, Hook
from astrollava_jax.training.loop import train as run_loop
from astrollava_jax.training.metrics import JsonLines, TensorBoard, read_log
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.preemption import Stop
from astrollava_jax.training.prefetch import Prefetch
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.watchdog import Heart


def train(run: RunConfig, *, bases: opening.Bases = (), dry: bool = False) -> None:
    """Trains one stage, or goes on with it where its run directory ends.

    Args:
        run: the run.
        bases: where the base of `run.out` stands now, if it moved.
        dry: print the plan and one batch instead; nothing is written.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
        Resumable: if it ended early, and goes on when it is started again.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file it writes
    storage.tell_once()
    keep_compiled()
    run = with_absolute_paths(run)
    stop = Stop(run.preemption)
    with contextlib.ExitStack() as held:
        heart = held.enter_context(contextlib.closing(Heart(run.watchdog)))
        held.enter_context(processes.joined(run.watchdog.floor_seconds))
        heart.processes = jax.process_count()
        console = Console(soft_wrap=True, markup=False, quiet=jax.process_index() > 0)
        with processes.failing_together():
            ready = get_ready(console, run, bases, keep=not dry)
            stage, data = ready.stage, ready.data
            if dry:
                dry_run.show(console, run, stage, data, ready.held_out, ready.fresh)
                return
            processes.first(lambda: held.enter_context(directory.alone(run.out)))
            if ready.going_on:
                directory.check_data(run.out, data.facts)
                params = read(run, ready.opened, stage, stage.model.frozen)
            else:
                # A start that was cut short before its first checkpoint is begun again.
                params = initial(run, ready.opened, stage, ready.fresh)
                begin(run, ready, params)
        _run(console, run, ready, params, heart, stop)


def _run(
    console: Console, run: RunConfig, ready: Ready, params: Params, heart: Heart, stop: Stop
) -> None:
    """Trains from the newest checkpoint, or from the beginning, to the end."""
    stage, data = ready.stage, ready.data
    total = data.plan.total_steps
    folder, kept = files.join(run.out, directory.CHECKPOINTS), run.checkpoint
    checkpoints = Checkpoints(
        folder, kept.keep, kept.keep_seconds, console.print, run=directory.run_name(run.out)
    )
    with stage.active(), stop:
        restored = checkpoints.restore_newest(abstract_state(stage, run))
        if restored is not None:
            state, progress = restored.state, restored.progress
            console.print(f"going on after step {restored.step} of {total}")
        elif all(address in params for address in stage.model.trainable):
            trainable = {address: params.pop(address) for address in stage.model.trainable}
            state, progress = stage.begin(trainable), Progress()
            checkpoints.prepare(state)
        else:
            raise ValueError(
                f"{folder}: no good checkpoint is left, all are set aside there under names that "
                "say why; start again to train from the beginning"
            )
        if progress.position >= total:
            console.print(f"{run.out}: complete, all {total} steps are done")
            checkpoints.close()
            return
        log = _log(console, run, stage, data, checkpoints)
        save = Save(
            checkpoints, plain(run), run.checkpoint.every_seconds, run.checkpoint.every_steps
        )
        evaluate = _evaluate(run, ready, params, log, heart, stop)
        source = Prefetch(deliveries(data, stage, progress.position))
        try:
            if evaluate is not None:
                evaluate.make_up(progress.step, state, _evaluated(run, progress.step))
            # The log tells of the checkpoint made before it.
            hooks: list[Hook] = [
                Guard(run.bad_records.max_fraction, data.samples),
                BadSteps(run.bad_numbers.max_in_row),
            ]
            hooks += [] if evaluate is None else [heart.watched("evaluate", evaluate)]
            hooks += [heart.watched("checkpoint", save)]
            hooks += [] if log is None else [heart.watched("log", log)]
            told = all_told(source, stage)
            recover = _recovery(console, run, stage, data, checkpoints, log, heart)
            _, progress = run_loop(
                stage.step, state, params, told, hooks, progress, total, recover, heart, stop,
                heart.watched("checkpoint", save.now),
            )  # fmt: skip
        finally:
            source.close()
            if log is not None:
                log.close()
            heart.beat("checkpoint", "the last one")
            checkpoints.close()
    bad = f", {progress.bad} of them bad" if progress.bad else ""
    console.print(f"{run.out}: complete, {total} steps{bad}; checkpoint {checkpoints.last_good}")


def _recovery(
    console: Console, run: RunConfig, stage: Stage, data: Data, checkpoints: Checkpoints,
    log: Log | None, heart: Heart,
) -> Recovery:  # fmt: skip
    return Recovery(
        checkpoints=checkpoints,
        like=abstract_state(stage, run),
        max_in_row=run.bad_numbers.max_in_row,
        heart=heart,
        records=functools.partial(record_names, data),
        log=log or (lambda event: None),
        tell=console.print,
    )


def _evaluate(
    run: RunConfig, ready: Ready, frozen: Params, log: Log | None, heart: Heart, stop: Stop
) -> Evaluate | None:
    stage, data = ready.stage, ready.held_out
    if run.evaluate is None or data is None:
        return None

    def evaluate(state: TrainState) -> tuple[float, list[str]] | None:
        return held_out_loss(stage, data, state, frozen, heart, stop)

    found = (lambda *_: None) if log is None else log.held_out
    return Evaluate(run.evaluate.every_steps, evaluate, found)


def _evaluated(run: RunConfig, step: int) -> bool:
    """Whether the log has the held-out loss of a step."""
    facts = read_log(files.join(run.out, "log.jsonl"))
    return agree(any(line["step"] == step and "held_out_loss" in line for line in facts))


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


def _log(
    console: Console, run: RunConfig, stage: Stage, data: Data, checkpoints: Checkpoints
) -> Log | None:
    """Process 0 keeps it for all."""
    if jax.process_index() > 0:
        return None
    path = files.join(run.out, "log.jsonl")
    attempts = [facts.get("attempt", 0) for facts in read_log(path)]
    board = TensorBoard(files.join(run.out, "tensorboard")) if run.log.tensorboard else None
    return Log(
        console,
        JsonLines(path),
        board,
        every_steps=run.log.every_steps,
        attempt=max(attempts, default=0) + 1,
        chips=jax.device_count(),
        first_group=run.optimizer.groups[0].name,
        checkpoints=checkpoints,
        work=_utilisation(stage.model, data),
        records=functools.partial(record_names, data),
        start=getattr(stage.step, "parts", {}),
    )


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
