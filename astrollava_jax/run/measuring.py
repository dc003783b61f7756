"""`plan --topology local --measure N`: takes the planned step with random numbers, and times it.

Nothing is read but the file of the run and the config of its model: weights are made on the
devices, and rows are full, as `plan` supposes them.
"""

import contextlib
import dataclasses
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from astrollava_jax import compiler, files
from astrollava_jax.params import Params
from astrollava_jax.planning.program import BREAKDOWN, first_line, memory_of
from astrollava_jax.planning.topologies import GIB
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.full_rows import random_rows, work
from astrollava_jax.run.initial import make_random
from astrollava_jax.run.plan import Machine, Uncompiled, uncompiled
from astrollava_jax.run.plan_options import Asked
from astrollava_jax.run.sweep_settings import settings, with_setting
from astrollava_jax.training.anomaly import GOOD
from astrollava_jax.training.flops import peak_flops
from astrollava_jax.training.state import TrainState
from astrollava_jax.weights.outline import Outline


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the steps of a setting took, over all chips where nothing else is said."""

    setting: str
    chips: int
    rows: int
    """Of a step."""
    micro_batches: int
    samples: int
    tokens: int
    """Filled positions of a step."""
    useful_flops: float
    """Of a step: see `training.flops`."""
    peak_bytes: int
    """Of one chip, by the compiler."""
    compile_seconds: float
    seconds: list[float]
    """Of each step after the first."""
    losses: list[float | None]
    """Of each step, the first too, None where it is not finite; the weights go on from setting to
    setting."""
    bad_steps: int
    """Those among them from which nothing was learned, as training would say."""
    trace: str | None
    """The folder of the trace."""

    @property
    def step_seconds(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        """The part of the chips' FLOP/s that is useful; None where no peak is known of them."""
        peak = peak_flops()
        return None if peak is None else self.useful_flops / self.step_seconds / peak

    def rates(self) -> dict[str, float | None]:
        """What follows from the median of the steps."""
        return {
            "step_seconds": self.step_seconds,
            "samples_per_second": self.samples / self.step_seconds,
            "tokens_per_second_per_chip": self.tokens / self.step_seconds / self.chips,
            "mfu": self.mfu,
        }

    def __str__(self):
        rates, shortest, longest = self.rates(), min(self.seconds), max(self.seconds)
        words = [
            f"{self.setting}: {self.rows} row(s) in {self.micro_batches} micro-batch(es)",
            f"peak {self.peak_bytes / GIB:.2f} GiB by the compiler",
            f"compiled in {self.compile_seconds:.1f} s",
            f"{self.step_seconds * 1e3:.1f} ms ({shortest * 1e3:.1f} to {longest * 1e3:.1f})",
            f"{rates['samples_per_second']:.2f} samples/s",
            f"{rates['tokens_per_second_per_chip']:.0f} tokens/s/chip",
        ]
        if self.mfu is not None:
            words.append(f"MFU {self.mfu:.1%}")
        ends = self.losses[0], self.losses[-1]
        first, last = ("not finite" if loss is None else f"{loss:.4f}" for loss in ends)
        words.append(f"loss {first} to {last}")
        if self.bad_steps:
            words.append(f"BAD NUMBERS in {self.bad_steps} of {len(self.losses)} steps")
        return ", ".join(words) + (f"; trace in {self.trace}" if self.trace else "")


def show_measured(run: RunConfig, where: Machine, outline: Outline, asked: Asked) -> bool:
    """Takes some steps of each setting and prints a line of it as soon as it is done.

    Args:
        run: the run.
        where: the devices of this machine.
        outline: what it trains.
        asked: how many steps, of which settings, and what is printed.

    Returns:
        Whether any of them could be run; why another could not is its line.

    Raises:
        ValueError: if an axis or a value is not known, or the run's own setting cannot be.
    """
    steps, tried = asked.measure, list(_tried(run, where, outline, asked))
    assert steps is not None
    # Axes that divide nothing are one setting's fault among others, but the user's in a run's own.
    borne = BREAKDOWN if asked.axes is None else (ValueError, *BREAKDOWN)
    weights, told, done = RandomWeights(), set(), 0
    for number, (name, prepare) in enumerate(tried, start=1):
        folder = asked.trace
        if folder is not None and asked.axes is not None:
            folder = files.join(folder, str(number))
        try:
            made = prepare()
            _tell(made, told)
            measured = measure(name, made, weights, steps, folder)
        except borne as error:
            why = first_line(error)
            print(json.dumps({"setting": name, "why": why}) if asked.as_json else f"{name}: {why}")
        else:
            done += 1
            facts = dataclasses.asdict(measured) | measured.rates()
            print(json.dumps(facts, allow_nan=False) if asked.as_json else measured)
        sys.stdout.flush()
        made = None
        gc.collect()  # what failed holds its arrays until its traceback, a circle, is gone
    return done > 0


def _tried(
    run: RunConfig, where: Machine, outline: Outline, asked: Asked
) -> Iterator[tuple[str, Callable[[], Uncompiled]]]:
    """The name of each setting, and what makes it ready to be compiled."""
    if asked.axes is None:
        throughput = asked.rows_per_chip is not None
        yield "as it is", lambda: uncompiled(run, where, outline, throughput=throughput)
        return
    for setting in settings(run, where, outline, asked.axes, asked.rows_per_chip):

        def prepare(setting: Any = setting) -> Uncompiled:
            how, told = with_setting(run, setting), setting.options
            return uncompiled(how, where, outline, throughput=True, told=told)

        yield str(setting), prepare


def _tell(made: Uncompiled, told: set[str]) -> None:
    """Says on stderr what was not said before: of the rows, and of how they are computed."""
    for line in (f"rows: {made.rows.said}", *(f"note: {note}" for note in made.notes)):
        if line not in told:
            print(line, file=sys.stderr, flush=True)
        told.add(line)


class RandomWeights:
    """A state and frozen weights of random numbers, kept for the next setting that lays them alike.

    Whoever takes them gives them back; if its step failed they are lost, and made again.
    """

    def __init__(self):
        self._kept: tuple[dict[str, Any], TrainState, Params] | None = None

    def take(self, made: Uncompiled) -> tuple[TrainState, Params]:
        """Those of a setting."""
        kept, self._kept = self._kept, None
        stage = made.stage
        if kept is not None and kept[0] == stage.shardings:
            return kept[1:]
        del kept  # there is no room for both
        frozen = make_random(made.run, stage)
        trainable = {address: frozen.pop(address) for address in stage.model.trainable}
        return stage.begin(trainable), frozen

    def give_back(self, made: Uncompiled, state: TrainState, frozen: Params) -> None:
        """Keeps them for the next."""
        self._kept = made.stage.shardings, state, frozen


def measure(
    name: str, made: Uncompiled, weights: RandomWeights, steps: int, trace: str | None = None
) -> Measured:
    """Compiles a setting and takes its steps: a first, those that are timed, and one to trace.

    Args:
        name: what the setting is called.
        made: the setting.
        weights: with which it computes.
        steps: that are timed.
        trace: a folder for a trace of one step more; None = none is taken.

    Raises:
        JaxRuntimeError: if it cannot be compiled, or finds no room on the devices.
    """
    stage, config, rows = made.stage, made.stage.model.config, made.rows
    began = time.perf_counter()
    with stage.active(), compiler.heard(made.run.compiler_options):
        program: Any = stage.step.lower(*made.arguments).compile()  # pyright: ignore: it is jitted
    compiled = time.perf_counter() - began
    batch = stage.to_devices(random_rows(rows, config.image_facts, config.llm.vocab_size))
    state, frozen = weights.take(made)
    losses, bad, seconds = [], 0, []
    for number in range(1 + steps + (trace is not None)):
        tracing = contextlib.nullcontext()
        if trace is not None and number > steps:
            tracing = jax.profiler.trace(files.make_folder(trace))
        with tracing:
            began = time.perf_counter()
            state, metrics = program(state, frozen, batch)
            losses.append(loss if math.isfinite(loss := float(metrics["loss"])) else None)
            bad += metrics["bad"] != GOOD
            seconds.append(time.perf_counter() - began)
    weights.give_back(made, state, frozen)
    return Measured(
        setting=name,
        chips=stage.mesh.size,
        rows=rows.count,
        micro_batches=stage.micro_batches,
        samples=rows.samples,
        tokens=work(rows).tokens,
        useful_flops=made.useful,
        peak_bytes=memory_of(program, stage.mesh.devices.flat[0].platform).peak,
        compile_seconds=compiled,
        seconds=seconds[1 : 1 + steps],
        losses=losses,
        bad_steps=int(bad),
        trace=trace,
    )
