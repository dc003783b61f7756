"""`plan`: compiles the step that `train` would run, for a machine that need not be there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from astrollava_jax import compiler
from astrollava_jax.batch import Batch
from astrollava_jax.compiler import Options
from astrollava_jax.meshing import Choice, Frozen
from astrollava_jax.params import Params
from astrollava_jax.planning.hlo import Collective
from astrollava_jax.planning.program import DoesNotFit, Memory, bytes_per_chip, compile_program
from astrollava_jax.planning.topologies import Topology, topology
from astrollava_jax.planning.work import Executed, executed
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.full_rows import work
from astrollava_jax.run.keeping import decided
from astrollava_jax.run.layout import needs, sentence
from astrollava_jax.run.plan_options import LOCAL
from astrollava_jax.run.planned_rows import Rows, planned_rows
from astrollava_jax.run.stage import Stage, abstract_arguments, build, describe, rows_unit
from astrollava_jax.training.flops import sizes_of, useful_flops
from astrollava_jax.training.optimizer import FROZEN
from astrollava_jax.training.state import TrainState
from astrollava_jax.weights.outline import Outline


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a step is compiled for."""

    name: str
    devices: Sequence[Any]
    usable: int | None
    """Bytes of one chip that a program may use; None where the device does not tell."""
    topology: Topology | None
    """None for the devices of this machine, which are in no table."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """What the compiler knows of a step."""

    asked: RunConfig
    """As it was given: what it leaves open is decided anew for each change of it."""
    run: RunConfig
    """With the batch of its step, and what was decided of it."""
    machine: Machine
    mesh: dict[str, int]
    frozen: Frozen
    """Whether every chip of fsdp has all frozen weights, or a slice."""
    rows: Rows
    steps: int | None
    """Of the run; None where they are not known, or are those of another batch."""
    micro_batches: int
    held: dict[str, int]
    """What its arguments hold, by class, in bytes of one chip."""
    memory: Memory | None
    """None where it was refused."""
    refused: DoesNotFit | None
    collectives: list[Collective]
    executed: Executed
    useful: float
    """FLOPs of full rows over all chips; see `training.flops`."""
    text: str
    """The compiled program; empty where it was refused."""
    notes: tuple[str, ...]
    """What a person should know of how it is computed there."""

    @property
    def rows_per_chip(self) -> int:
        """That one chip computes at a time."""
        ways = self.mesh["data"] * self.mesh["fsdp"]
        return self.rows.count // (self.micro_batches * ways)

    @property
    def needed(self) -> int:
        """Bytes that one chip needs."""
        if self.memory is not None:
            return self.memory.peak
        assert self.refused is not None
        return self.refused.needed

    @property
    def fits(self) -> bool:
        """Whether it was compiled, and needs no more than there is, where that is known."""
        usable = self.machine.usable
        return self.memory is not None and (usable is None or self.needed <= usable)


def machine(name: str) -> Machine:
    """The machine of a name: one of the table, or `local`.

    Raises:
        ValueError: if it is not in the table.
    """
    if name != LOCAL:
        found = topology(name)
        return Machine(name, found.devices(), found.chip.hbm_bytes, found)
    devices = jax.devices()
    usable = (devices[0].memory_stats() or {}).get("bytes_limit")
    return Machine(devices[0].device_kind, devices, usable, None)


@dataclasses.dataclass(frozen=True)
class Uncompiled:
    """A step that is ready to be compiled, with the layout of all that it takes."""

    run: RunConfig
    """With the batch of its step."""
    stage: Stage
    rows: Rows
    choice: Choice
    arguments: tuple[TrainState, Params, Batch]
    """As shapes."""
    notes: tuple[str, ...]
    """What a person should know of how it is computed there."""

    @property
    def useful(self) -> float:
        """The FLOPs that a step of full rows needs over all chips; see `training.flops`."""
        model = self.stage.model
        trains = {address: fate != FROZEN for address, fate in model.fates.items()}
        return useful_flops(model.config, sizes_of(model.shapes), trains, work(self.rows))


def uncompiled(
    run: RunConfig, where: Machine, outline: Outline, *, throughput: bool = False,
    told: Options | None = None,
) -> Uncompiled:  # fmt: skip
    """The run's step for a machine, by the code by which `train` builds it.

    Args:
        run: the run.
        where: the machine.
        outline: what it trains.
        throughput: take a step of `batch.rows_per_device` rows on each chip in place of the batch.
        told: all that the compiler is told; None = what `train` would tell it.

    Raises:
        ValueError: if model, batch and mesh do not go together; the user's mistakes.
    """
    config = outline.config
    model = describe(run, config)
    mesh, choice = run.mesh.layout(where.devices, needs(run, model, where.usable))
    if throughput:
        batch = dataclasses.replace(run.batch, samples=None, rows=rows_unit(run, mesh))
        run = dataclasses.replace(run, batch=batch)
    rows = planned_rows(run, config.image_facts, rows_unit(run, mesh), outline.tokenizer_folder)
    run, told_of = decided(
        run, model, mesh, choice.frozen, rows.count, rows.shape.samples, where.usable
    )
    stage = build(
        run, model, mesh, rows=rows.count, samples=rows.samples, updates=100, frozen=choice.frozen,
        told=told,
    )  # fmt: skip
    arguments = abstract_arguments(stage, run, rows.shape, config.image_facts, rows.count)
    notes = (*outline.notes, sentence(stage.mesh, choice), *filter(None, [told_of]), *stage.notes)
    return Uncompiled(run, stage, rows, choice, arguments, notes)


def plan(
    run: RunConfig, where: Machine, outline: Outline, *, throughput: bool = False,
    told: Options | None = None,
) -> Planned:  # fmt: skip
    """Compiles the run's step for a machine: see `uncompiled`."""
    made = uncompiled(run, where, outline, throughput=throughput, told=told)
    stage, rows = made.stage, made.rows
    state, frozen, batch = made.arguments
    memory, refused, text, exchanged = None, None, "", []
    with stage.active(), compiler.heard(run.compiler_options):
        traced = stage.step.trace(*made.arguments)  # pyright: ignore: it is a jitted function
        try:
            program = compile_program(traced.lower(), where.devices[0].platform)
            memory, text, exchanged = program.memory, program.text, program.collectives
        except DoesNotFit as error:
            refused = error
    return Planned(
        asked=run,
        run=made.run,
        machine=where,
        mesh=dict(stage.mesh.shape),
        frozen=made.choice.frozen,
        rows=rows,
        steps=None if throughput else run.steps,
        micro_batches=stage.micro_batches,
        held={
            "frozen weights": bytes_per_chip(frozen),
            "trainable weights": bytes_per_chip(state.trainable),
            "moments": bytes_per_chip((state.optimizer, state.history)),
            "batch": bytes_per_chip(batch),
        },
        memory=memory,
        refused=refused,
        collectives=exchanged,
        executed=executed(traced.jaxpr),
        useful=made.useful,
        text=text,
        notes=made.notes,
    )
