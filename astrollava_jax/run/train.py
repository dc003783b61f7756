"""`train`: one stage from its config to its last checkpoint; it resumes by itself."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import ConfigError, dump, plain
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.params import Params
from astrollava_jax.run import directory, dry_run, opening
from astrollava_jax.run.config import RunConfig, changed, with_absolute_paths
from astrollava_jax.run.initial import fresh_addresses, initial, read, with_own_adapters
from astrollava_jax.run.records import (
    Data,
    deliveries,
    evaluation_batches,
    held_out_data,
    training_data,
)
from astrollava_jax.run.stage import Model, Stage, abstract_state, build, describe, rows_unit
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.flops import Work, peak_flops, sizes_of, useful_flops
from astrollava_jax.training.hooks import Evaluate, Guard, Log, Save
from astrollava_jax.training.loop import Event, Hook
from astrollava_jax.training.loop import train as run_loop
from astrollava_jax.training.metrics import JsonLines, TensorBoard, read_log
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.prefetch import Prefetch
from astrollava_jax.training.state import Progress, TrainState


def train(run: RunConfig, *, bases: opening.Bases = (), dry: bool = False) -> None:
    """Trains one stage, or goes on with it where its run directory ends.

    Args:
        run: the run.
        bases: where the base of `run.out` stands now, if it moved.
        dry: print the plan and one batch instead; nothing is written.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file it writes
    console = Console(soft_wrap=True, markup=False)
    run = with_absolute_paths(run)
    going_on = _check_same_run(run)
    reopened = opening.reopen(run, bases) if going_on else None
    opened = reopened or opening.open_init(run.init, bases)
    for note in () if reopened else opened.source.notes:
        console.print(f"note: {note}")
    config = opened.source.config
    model = describe(run, config)
    if not reopened:
        opened, told = with_own_adapters(run, model, opened)
        if told:
            console.print(f"note: {told}")
    fresh = fresh_addresses(run, model, opened)
    mesh = run.mesh.build()
    tokenizer = _tokenizer(opened, config)
    data = training_data(run, tokenizer, config.image_facts, rows_unit(run, mesh), keep=not dry)
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
    held_out = held_out_data(run, tokenizer, config.image_facts, rows, keep=not dry)
    if dry:
        dry_run.show(console, run, stage, data, held_out, fresh)
        return
    with directory.alone(run.out):
        if reopened:
            directory.check_data(run.out, data.facts)
            params = read(run, reopened, stage, model.frozen)
        else:
            # A start that was cut short before its first checkpoint is begun again.
            params = initial(run, opened, stage, fresh)
            _begin(run, opened, stage, params, fresh, data)
        _run(console, run, stage, data, held_out, params)


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


def _begin(
    run: RunConfig, opened: opening.Opened, stage: Stage, params: Params, fresh: list[str],
    data: Data,
) -> None:  # fmt: skip
    """Writes the run directory."""
    foreign = {*fresh, *opened.changed}
    inherited: Mapping[str, Any] = {
        address: np.asarray(params[address]) if address in fresh else opened.changed[address]
        for address in stage.model.frozen
        if address in foreign
    }
    first = run.data[0]
    # Captions teach no way of speaking: the first set with dialogues says how the model is asked.
    spoken = [config.template for config in run.data if config.template != "plain"]
    template = spoken[0] if spoken else opened.template
    directory.begin(
        run.out, dump(run), opened.base, opened.init, stage.model.trainable, stage.model.frozen,
        inherited, template, first.image, data.facts,
    )  # fmt: skip


def _run(
    console: Console, run: RunConfig, stage: Stage, data: Data, held_out: Data | None,
    params: Params,
) -> None:  # fmt: skip
    """Trains from the newest checkpoint, or from the beginning, to the end."""
    total = data.plan.total_steps
    checkpoints = Checkpoints(files.join(run.out, directory.CHECKPOINTS), run.checkpoint.keep)
    with stage.active():
        newest = checkpoints.latest()
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
            run_loop(stage.step, state, params, source, hooks, progress, total)
        finally:
            source.close()
            log.close()
            checkpoints.close()
    console.print(f"{run.out}: complete, {total} steps; checkpoint {checkpoints.last_good}")


def _hooks(
    run: RunConfig, stage: Stage, data: Data, held_out: Data | None, frozen: Params,
    checkpoints: Checkpoints, log: Log,
) -> list[Hook]:  # fmt: skip
    """What happens after a step, in this order: the log tells of the checkpoint made before it."""
    hooks: list[Hook] = [Guard(run.bad_records.max_fraction, data.samples)]
    if run.evaluate is not None and held_out is not None:

        def evaluate(state: TrainState) -> tuple[float, list[str]]:
            return held_out_loss(stage, held_out, state, frozen)

        hooks.append(Evaluate(run.evaluate.every_steps, evaluate, log.held_out))
    save = Save(checkpoints, plain(run), run.checkpoint.every_seconds, run.checkpoint.every_steps)
    return [*hooks, save, log]


def held_out_loss(
    stage: Stage, data: Data, state: TrainState, frozen: Params
) -> tuple[float, list[str]]:
    """The mean loss of all learned tokens of the held-out records, and those not to be read."""
    total, learned, faults = 0.0, 0.0, []
    for batch, unreadable in evaluation_batches(data, stage):
        found, count = stage.evaluate(state.trainable, frozen, batch)
        total, learned = total + float(found), learned + float(count)
        faults += unreadable
    return total / max(learned, 1.0), faults


def _log(
    console: Console, run: RunConfig, stage: Stage, data: Data, checkpoints: Checkpoints
) -> Log:
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
