"""`train --dry-run`: what the run would do, and one batch in words, with what is learned."""

from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.params import summary
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.records import Data, stretched_fill
from astrollava_jax.run.stage import Stage
from astrollava_jax.training.optimizer import FROZEN

GIB = 2**30
SHOWN_SAMPLES = 4


def show(
    console: Console, run: RunConfig, stage: Stage, data: Data, tokenizer: Tokenizer,
    fresh: list[str],
) -> None:  # fmt: skip
    """Prints the plan and one batch."""
    _fates(console, run, stage, fresh)
    _steps(console, run, data)
    _fullness(console, run, data)
    _memory(console, run, stage)
    _batch(console, data, tokenizer)


def _fates(console: Console, run: RunConfig, stage: Stage, fresh: list[str]) -> None:
    table = Table("fate", "parameters", "GiB kept", "peak_lr", title="parameters and their fates")
    rates = {group.name: f"{group.peak_lr:.1e}" for group in run.optimizer.groups}
    for fate, count, size in summary(stage.model.shapes, stage.model.fates):
        # The shapes are float32; a frozen one is kept in the run's own precision.
        size = size // 2 if fate == FROZEN and run.precision.frozen == "bfloat16" else size
        table.add_row(fate, f"{count:,}", f"{size / GIB:.3f}", rates.get(fate, "-"))
    console.print(table)
    if fresh:
        console.print(f"made anew from the seed: {', '.join(fresh)}")


def _steps(console: Console, run: RunConfig, data: Data) -> None:
    plan, total = data.plan, data.plan.total_steps
    most = max(plan.samples(step) for step in range(total))
    console.print(
        f"{total} steps of up to {most} samples in {plan.rows} rows of {plan.shape.length} "
        f"positions; {data.samples} samples in all, {len(data.reader)} records"
    )
    warmup = getattr(run.optimizer.schedule, "warmup_fraction", 0.0)
    console.print(f"warm-up: {int(np.ceil(warmup * total))} steps")
    for config, part in zip(run.data, data.reader.parts):
        console.print(
            f"  {len(part.source)} records x {config.weight:g}, template {config.template}, "
            f"image {config.image}: {config.records}"
        )


def _fullness(console: Console, run: RunConfig, data: Data) -> None:
    plan = data.plan
    parts = [f"1x {plan.fill:.3f}"]
    for factor in (2, 4):
        parts.append(f"{factor}x {stretched_fill(run, data, factor):.3f}")
    console.print(f"filled positions, empty rows counted, at the length: {', '.join(parts)}")
    console.print(
        f"a row holds up to {plan.shape.images} images and {plan.shape.learned} learned positions"
    )


def _memory(console: Console, run: RunConfig, stage: Stage) -> None:
    """What must be held whatever the batch: weights, moments, gradients, frozen copies."""
    total = 0
    for address, shape in stage.model.shapes.items():
        local = stage.shardings[address].shard_shape(shape.shape)
        size = int(np.prod(local))
        frozen = 2 if run.precision.frozen == "bfloat16" else 4
        total += size * (frozen if stage.model.fates[address] == FROZEN else 16)
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    verdict = "the device does not tell its memory"
    if limit:
        verdict = f"{'fits' if total < limit else 'DOES NOT FIT'} in {limit / GIB:.2f} GiB"
    console.print(
        f"per device, before activations: {total / GIB:.3f} GiB (weights, moments and gradients of "
        f"what trains; a working copy of what does not): {verdict}"
    )


def _batch(console: Console, data: Data, tokenizer: Tokenizer) -> None:
    with Pipeline(data.plan, data.reader).batches() as batches:
        found = next(batches)
    console.print("the first samples of step 1; what is learned is underlined:")
    shown = 0
    for row in range(found.batch.tokens.shape[0]):
        for segment in range(1, int(found.batch.segment_ids[row].max()) + 1):
            if shown == SHOWN_SAMPLES:
                return
            console.print(sample_text(found.batch, row, segment, tokenizer))
            shown += 1


def sample_text(batch: Any, row: int, segment: int, tokenizer: Tokenizer) -> Text:
    """One sample in words: images as a mark, learned tokens underlined."""
    places = np.flatnonzero(batch.segment_ids[row] == segment)
    # The loss at a position is on the token after it.
    learned = set((batch.learned_index[row] + 1).tolist())
    text = Text()
    runs: list[tuple[str, list[int]]] = []
    for place in places.tolist():
        image = batch.feature_index[row, place] >= 0
        kind = "image" if image else "learned" if place in learned else "plain"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(int(batch.tokens[row, place]))
    for kind, ids in runs:
        if kind == "image":
            text.append(f"[{len(ids)} image positions] ", style="dim")
        else:
            style = "underline green" if kind == "learned" else ""
            text.append(tokenizer.decode(ids), style=style)
            text.append(" ")
    return text
