"""`train --dry-run`: what the run would do, and one batch in words, with what is learned."""

import math

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from astrollava_jax import files
from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.meshing import size
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.decoded import CLOSE, OPEN, sample_text
from astrollava_jax.run.directory import CHECKPOINTS
from astrollava_jax.run.layout import TRAINING_BYTES
from astrollava_jax.run.records import Data, stretched
from astrollava_jax.run.stage import Stage, abstract_params, rows_unit
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.steps import steps

SHOWN_SAMPLES = 4
LENGTHS = (1, 2, 4)
"""Row lengths that are tried, in lengths of the run's own."""


def show(
    console: Console, run: RunConfig, stage: Stage, data: Data, held_out: Data | None,
    fresh: list[str],
) -> None:  # fmt: skip
    """Prints the plan and one batch."""
    _run(console, run, stage)
    _fates(console, run, stage, fresh)
    _memory(console, run, stage)
    _steps(console, run, data)
    _sets(console, run, data, held_out)
    _fullness(console, run, stage, data)
    _batch(console, data)


def _run(console: Console, run: RunConfig, stage: Stage) -> None:
    done = steps(files.join(run.out, CHECKPOINTS))
    console.print(f"run: {run.out}" + (f", going on after step {done[-1]}" if done else ""))
    console.print(f"init: {run.init.model or f'{run.init.vision} and {run.init.llm}'}")
    precision = run.precision
    console.print(
        f"precision: compute {precision.compute}, trainable {precision.trainable}, "
        f"frozen {precision.frozen}; remat {stage.remat}"
    )


def _fates(console: Console, run: RunConfig, stage: Stage, fresh: list[str]) -> None:
    optimizer, model = run.optimizer, stage.model
    rows = [(g.name, f"{g.peak_lr:g}", (g.params,)) for g in optimizer.groups]
    rows += [(FROZEN, "-", optimizer.frozen)] if model.frozen else []
    table = Table(box=box.SIMPLE, title="parameters and their fates", title_justify="left")
    for name in ("fate", "peak_lr", "parameters", "bytes", "addresses"):
        table.add_column(name, justify="left" if name in ("fate", "addresses") else "right")
    for fate, rate, patterns in rows:
        mine = [address for address, given in model.fates.items() if given == fate]
        count = sum(math.prod(model.shapes[address].shape) for address in mine)
        kept = size(sum(_held(run, stage, address)[0] for address in mine))
        table.add_row(fate, rate, f"{count:,}", kept, "\n".join(patterns))
    console.print(table)
    stored = f", less where it is stored as {run.precision.frozen}" if model.stores else ""
    console.print(
        f"bytes: {TRAINING_BYTES} per parameter that trains (weight, two moments, gradient), "
        f"{np.dtype(run.precision.working).itemsize} per frozen one (a working copy){stored}"
    )
    if fresh:
        count = sum(math.prod(model.shapes[address].shape) for address in fresh)
        patterns = ", ".join(run.init.fresh + (("adapters",) if run.lora else ()))
        console.print(f"made anew from the seed {run.seed}: {patterns}, {count:,} parameters")


def _memory(console: Console, run: RunConfig, stage: Stage) -> None:
    """What must be held whatever the batch: weights, moments, gradients, frozen copies."""
    total = 0
    for address in stage.model.shapes:
        total += _held(run, stage, address)[1]
    stats = jax.local_devices()[0].memory_stats() or {}
    told = verdict(total, stats.get("bytes_limit"))
    console.print(f"memory: {size(total)} per device before activations; {told}")


def verdict(needed: int, limit: int | None) -> str:
    """Whether so many bytes fit on a device."""
    if limit is None:
        return "the device does not tell how much it has"
    if needed < limit:
        return f"fits in {size(limit)}, and leaves {size(limit - needed)} for activations"
    return f"DOES NOT FIT in {size(limit)}: use more devices, or let less train"


def _steps(console: Console, run: RunConfig, data: Data) -> None:
    plan, total = data.plan, data.plan.total_steps
    counts = [plan.samples(step) for step in range(total)]
    last = f" (the last: {counts[-1]})" if counts[-1] != max(counts) else ""
    fraction = getattr(run.optimizer.schedule, "warmup_fraction", 0.0)
    console.print(
        f"steps: {total} steps of {'' if run.batch.samples else 'up to '}{max(counts)} samples"
        f"{last}, warm-up {math.ceil(fraction * total)} steps, schedule "
        f"{run.optimizer.schedule.type}"
    )


def _sets(console: Console, run: RunConfig, data: Data, held_out: Data | None) -> None:
    epochs = len(data.plan.steps_per_epoch)
    console.print(f"data: {data.samples} samples in {epochs} epoch(s)")
    for config, part in zip(run.data, data.reader.parts):
        console.print(
            f"  {len(part.source)} records x {config.weight:g}, template {config.template}, "
            f"image {config.image}: {config.records}"
        )
    if run.evaluate is not None and held_out is not None:
        console.print(
            f"  held out, every {run.evaluate.every_steps} steps: {len(held_out.reader)} records: "
            f"{run.evaluate.records}"
        )


def _fullness(console: Console, run: RunConfig, stage: Stage, data: Data) -> None:
    table = Table(box=box.SIMPLE, title="how full the rows are", title_justify="left")
    for name in ("length", "rows per step", "filled", "samples cut"):
        table.add_column(name, justify="right")
    for factor in LENGTHS:
        plan, lengths = stretched(run, data, factor, rows_unit(run, stage.mesh))
        length = f"{factor}x {plan.shape.length}"
        table.add_row(length, str(plan.rows), f"{plan.fill:.3f}", str(lengths.num_cut))
    console.print(table)
    shape = data.plan.shape
    console.print(
        f"filled counts empty rows too; a row holds up to {shape.images} images (each tile is one) "
        f"and {shape.learned} learned positions; a step is {stage.micro_batches} micro-batch(es)"
    )


def _batch(console: Console, data: Data) -> None:
    with Pipeline(data.plan, data.reader).batches() as batches:
        found = next(batches)
    batch, reader = found.batch, data.reader
    learned = batch.learned_index >= 0
    console.print(
        f"\nthe batch of step 1: {len(found.records)} samples, "
        f"{np.count_nonzero(batch.segment_ids)} of {batch.tokens.size} positions filled, "
        f"{np.count_nonzero(learned)} learned; {OPEN}this is learned{CLOSE}"
    )
    for fault in found.faults[:SHOWN_SAMPLES]:
        console.print(f"unusable, its loss is off: {fault.record} ({fault.where}): {fault.why}")
    shown = [
        (row, segment)
        for row in range(len(batch.tokens))
        for segment in range(1, int(batch.segment_ids[row].max()) + 1)
    ][:SHOWN_SAMPLES]
    for row, segment in shown:
        here = batch.segment_ids[row] == segment
        count = np.count_nonzero(here[batch.learned_index[row][learned[row]]])
        name = found.records[data.plan.row(0, row)[segment - 1].sample]
        console.print(
            f"\n  {name} in row {row + 1}: {np.count_nonzero(here)} positions, {count} learned"
        )
        text = sample_text(batch, row, segment, reader.tokenizer, reader.facts.tokens)
        for line in text.split("\n"):
            console.print("    ", line, sep="")
    if len(found.records) > len(shown):
        console.print(f"\n  and {len(found.records) - len(shown)} more samples")


def _held(run: RunConfig, stage: Stage, address: str) -> tuple[int, int]:
    """The bytes that a parameter takes while training: all of it, and what one device has."""
    arrays = jax.tree.leaves(abstract_params(stage, [address], run.precision.working))
    trains = stage.model.fates[address] != FROZEN
    sizes = [TRAINING_BYTES if trains else array.dtype.itemsize for array in arrays]
    local = [array.sharding.shard_shape(array.shape) for array in arrays]
    return (
        sum(math.prod(array.shape) * size for array, size in zip(arrays, sizes)),
        sum(math.prod(shape) * size for shape, size in zip(local, sizes)),
    )
