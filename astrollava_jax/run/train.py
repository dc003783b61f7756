"""`train`: one stage from its config to its last checkpoint; it resumes by itself."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import ConfigError, dump, plain
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.params import Params
from astrollava_jax.run import directory, dry_run, opening, processes
from astrollava_jax.run.config import RunConfig, changed, with_absolute_paths
from astrollava_jax.run.initial import fresh_addresses, initial, read, with_own_adapters
from astrollava_jax.run.records import (
    Data,
    all_told,
    deliveries,
    evaluation_batches,
    held_out_data,
    of_all,
    training_data,
)
from astrollava_jax.run.stage import Model, Stage, abstract_state, build, describe, rows_unit
from astrollava_jax.sharding import agree, whole
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.flops import Work, peak_flops, sizes_of, useful_flops
from astrollava_jax.training.hooks import Evaluate, Guard, Log, Save
from astrollava_jax.training.loop import Event, Hook
from astrollava_jax.training.loop import train as run_loop
from astrollava_jax.training.metrics import JsonLines, TensorBoard, read_log
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.prefetch import Prefetch
from astrollava_jax.training.state import Progress, TrainState


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that can begin: everything that is known before a parameter is on a device."""

    opened: opening.Opened
    going_on: bool
    fresh: list[str]
    stage: Stage
    data: Data
    held_out: Data | None


def train(run: RunConfig, *, bases: opening.Bases = (), dry: bool = False) -> None:
    """Trains one stage, or goes on with it where its run directory ends.

    Args:
        run: the run.
        bases: where the base of `run.out` stands now, if it moved.
        dry: print the plan and one batch instead.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
        Resumable: if it ended early, and goes on when it is started again.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file it writes
    run = with_absolute_paths(run)
    with contextlib.ExitStack() as held:
        held.enter_context(processes.joined(60))
        console = Console(soft_wrap=True, markup=False, quiet=jax.process_index() > 0)
        with processes.failing_together():
            ready = _ready(console, run, bases)
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
                _begin(run, ready, params)
        _run(console, run, stage, data, ready.held_out, params)


def _ready(console: Console, run: RunConfig, bases: opening.Bases) -> Ready:
    """Opens and plans everything; nothing is written but the lengths of the records."""
    processes.alike({"config": plain(run), **processes.machine()})
    same = processes.first(lambda: _check_same_run(run))
    reopened = opening.reopen(run, bases) if same else None
    going_on = reopened is not None
    opened = reopened or opening.open_init(run.init, bases)
    for note in () if going_on else opened.source.notes:
        console.print(f"note: {note}")
    config = opened.source.config
    model = describe(run, config)
    if not going_on:
        opened, told = with_own_adapters(run, model, opened)
        if told:
            console.print(f"note: {told}")
    fresh = fresh_addresses(run, model, opened)
    mesh = run.mesh.build()
    tokenizer = _tokenizer(opened, config)
    data = training_data(run, tokenizer, config.image_facts, rows_unit(run, mesh))
    processes.alike({"data": data.facts, "tokenizer": tokenizer.fingerprint()})
    _warn(console, data)
    stage = build(
        run,
        model,
        mesh,
        rows=data.plan.rows,
        samples=max(data.plan.samples(step) for step in range(data.plan.total_steps)),
        updates=data.plan.total_steps,
    )
    rows = data.plan.rows // stage.micro_batches
    held_out = held_out_data(run, tokenizer, config.image_facts, rows)
    return Ready(opened, going_on, fresh, stage, data, held_out)


def _check_same_run(run: RunConfig) -> bool:
    """Whether the run directory holds the beginning of this run."""
    if not files.exists(files.join(run.out, directory.BASE)):
        directory.check_free(run.out)
        return False
    differing = changed(directory.resolved(run.out), run)
    if differing:
        raise ConfigError(
            f"{run.out} holds another run; choose another `out`, or undo these changes:\n  "
            + "\n  ".join(differing)
        )
    return True


def _tokenizer(opened: opening.Opened, config: LlavaConfig) -> Tokenizer:
    tokenizer = opened.source.tokenizer
    special = {tokenizer.image_id, tokenizer.pad_id}
    words = max(set(range(tokenizer.vocab_size)) - special)
    if words >= config.llm.vocab_size:
        raise ValueError(
            f"{tokenizer.folder}: its words have ids up to {words}, but the model's embedding has "
            f"{config.llm.vocab_size} rows: this tokenizer belongs to another model"
        )
    return tokenizer


def _warn(console: Console, data: Data) -> None:
    lengths = data.lengths
    if lengths.num_cut:
        console.print(
            f"{lengths.num_cut} of {len(lengths.tokens)} samples are longer than a row and are cut "
            "at its end"
        )
    for fault in lengths.faults[:10]:
        console.print(f"unusable record: {fault.record} ({fault.where}): {fault.why}")
    if len(lengths.faults) > 10:
        console.print(f"... and {len(lengths.faults) - 10} more unusable records")


def _begin(run: RunConfig, ready: Ready, params: Params) -> None:
    """Writes the run directory."""
    opened, model = ready.opened, ready.stage.model
    foreign = {*ready.fresh, *opened.changed}
    inherited: Mapping[str, Any] = {
        address: whole(params[address]) if address in ready.fresh else opened.changed[address]
        for address in model.frozen
        if address in foreign
    }
    first = run.data[0]
    # Captions teach no way of speaking: the first set with dialogues says how the model is asked.
    spoken = [config.template for config in run.data if config.template != "plain"]
    template = spoken[0] if spoken else opened.template

    def begin() -> None:
        directory.begin(
            run.out, dump(run), opened.base, opened.init, model.trainable, model.frozen,
            inherited, template, first.image, ready.data.facts,
        )  # fmt: skip

    processes.first(begin)


def _run(
    console: Console, run: RunConfig, stage: Stage, data: Data, held_out: Data | None,
    params: Params,
) -> None:  # fmt: skip
    """Trains from the newest checkpoint, or from the beginning, to the end."""
    total = data.plan.total_steps
    checkpoints = Checkpoints(files.join(run.out, directory.CHECKPOINTS), run.checkpoint.keep)
    with stage.active():
        newest = agree(checkpoints.latest())
        if newest is None:
            trainable = {address: params.pop(address) for address in stage.model.trainable}
            state, progress = TrainState(trainable, stage.init_optimizer(trainable)), Progress()
        else:
            state, progress = checkpoints.restore(newest, abstract_state(stage, run))
            console.print(f"going on after step {newest} of {total}")
        if progress.step >= total:
            console.print(f"{run.out}: complete, all {total} steps are done")
            checkpoints.close()
            return
        log = _log(console, run, stage, data, checkpoints)
        source = Prefetch(deliveries(data, stage, progress.position))
        try:
            hooks = _hooks(run, stage, data, held_out, params, checkpoints, log)
            told = all_told(source, stage)
            run_loop(stage.step, state, params, told, hooks, progress, total)
        finally:
            source.close()
            if log is not None:
                log.close()
            checkpoints.close()
    console.print(f"{run.out}: complete, {total} steps; checkpoint {checkpoints.last_good}")


def _hooks(
    run: RunConfig, stage: Stage, data: Data, held_out: Data | None, frozen: Params,
    checkpoints: Checkpoints, log: Log | None,
) -> list[Hook]:  # fmt: skip
    """What happens after a step, in this order: the log tells of the checkpoint made before it."""
    hooks: list[Hook] = [Guard(run.bad_records.max_fraction, data.samples)]
    if run.evaluate is not None and held_out is not None:

        def evaluate(state: TrainState) -> tuple[float, list[str]]:
            return held_out_loss(stage, held_out, state, frozen)

        found = (lambda *_: None) if log is None else log.held_out
        hooks.append(Evaluate(run.evaluate.every_steps, evaluate, found))
    save = Save(checkpoints, plain(run), run.checkpoint.every_seconds, run.checkpoint.every_steps)
    return [*hooks, save] if log is None else [*hooks, save, log]


def held_out_loss(
    stage: Stage, data: Data, state: TrainState, frozen: Params
) -> tuple[float, list[str]]:
    """The mean loss of all learned tokens of the held-out records, and those not to be read."""
    total, learned, faults = 0.0, 0.0, []
    for batch, unreadable in evaluation_batches(data, stage):
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
    attempts = [facts["attempt"] for facts in read_log(path)]
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
