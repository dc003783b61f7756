"""Before a run's first step: all is opened, compared and planned; then its directory begins."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import ConfigError, dump
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.params import Params
from astrollava_jax.run import directory, held, keeping, opening, processes
from astrollava_jax.run.ahead import ahead
from astrollava_jax.run.config import RunConfig, changed
from astrollava_jax.run.initial import fresh_addresses, with_own_adapters
from astrollava_jax.run.layout import device_memory, layout, sentence
from astrollava_jax.run.records import Data, held_out_data, training_data
from astrollava_jax.run.stage import Stage, abstract_arguments, build, describe, rows_unit
from astrollava_jax.sharding import whole


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that can begin: everything that is known before a parameter is on a device."""

    opened: opening.Opened
    going_on: bool
    fresh: list[str]
    stage: Stage
    data: Data
    held_out: Data | None


def get_ready(console: Console, run: RunConfig, bases: opening.Bases, *, keep: bool) -> Ready:
    """Opens and plans everything; `keep` writes the lengths of the records, and nothing else.

    Who trains holds the run directory already: what is found there stays so.
    """
    began = time.monotonic()
    going_on = processes.first(lambda: goes_on(run, console.print))
    opened = opening.reopen(run, bases) if going_on else opening.open_init(run.init, bases)
    for note in () if going_on else opened.source.notes:
        console.print(f"note: {note}")
    config = opened.source.config
    model = describe(run, config)
    if not going_on:
        opened, told = with_own_adapters(run, model, opened)
        if told:
            console.print(f"note: {told}")
    fresh = fresh_addresses(run, model, opened)
    memory = device_memory()
    mesh, choice = layout(run, model, memory)
    console.print(sentence(mesh, choice))
    tokenizer = _tokenizer(opened, config)
    data = training_data(run, tokenizer, config.image_facts, rows_unit(run, mesh), keep=keep)
    processes.alike({"data": data.facts, "tokenizer": tokenizer.fingerprint()})
    _warn(console, data, os.cpu_count() or 1)
    plan = data.plan
    how, told = keeping.decided(
        run, model, mesh, choice.frozen, plan.rows, plan.shape.samples, memory
    )
    if told:
        console.print(told)
    stage = build(
        how,
        model,
        mesh,
        rows=data.plan.rows,
        samples=max(data.plan.samples(step) for step in range(data.plan.total_steps)),
        updates=data.plan.total_steps,
        frozen=choice.frozen,
    )
    for note in stage.notes:
        console.print(f"note: {note}")
    rows = data.plan.rows // stage.micro_batches
    held_out = held_out_data(run, tokenizer, config.image_facts, rows, keep=keep)
    if keep and not _complete(run, data):
        arguments = abstract_arguments(
            stage, run, data.plan.shape, config.image_facts, data.plan.rows
        )
        stage = ahead(stage, arguments, run.compiler_options, began, console.print)
    return Ready(opened, going_on, fresh, stage, data, held_out)


def _complete(run: RunConfig, data: Data) -> bool:
    """Whether there is nothing left to do, as far as names of checkpoints tell."""
    return data.plan.total_steps in directory.finished_steps(run.out)


def goes_on(run: RunConfig, tell: Callable[[str], None] = lambda _: None) -> bool:
    """Whether the run directory holds a good checkpoint of this run; `tell` hears why not.

    Raises:
        ConfigError: if it holds another run.
        ValueError: if it holds something else, or its beginning or its checkpoints are lost.
    """
    if not files.exists(files.join(run.out, directory.BASE)):
        directory.check_free(run.out)
        return False
    finished = directory.finished_steps(run.out)
    if finished:  # else it can have been cut short while it began a second time
        directory.check_beginning(run.out, only=(directory.CONFIG, directory.BASE))
    differing = changed(directory.resolved(run.out), run)
    if differing:
        raise ConfigError(
            f"{run.out} holds another run; choose another `out`, or undo these changes:\n  "
            + "\n  ".join(differing)
        )
    if not finished:
        held.check_not_emptied(run.out)
        tell(f"{run.out}: this run has no good checkpoint, and begins again")
    return bool(finished)


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


def _warn(console: Console, data: Data, cores: int) -> None:
    if data.workers > 2 * cores:
        console.print(
            f"note: workers is {data.workers}, but this machine has {cores} core(s): so many more "
            "processes than cores take memory, and no work off each other"
        )
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


def begin(run: RunConfig, ready: Ready, params: Params) -> None:
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

    def write() -> None:
        directory.begin(
            run.out, dump(run), opened.base, opened.init, model.trainable, model.frozen,
            inherited, template, first.image, ready.data.facts,
        )  # fmt: skip

    processes.first(write)
