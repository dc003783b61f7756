"""`plan --topology local --measure N`: takes the planned step with random numbers, and times it.

Nothing is read but the file of the run and the config of its model: weights are made on the
devices, rows are full, as `plan` supposes them.
"""

import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from astrollava_jax.batch import TEXT, Batch, ImageFacts
from astrollava_jax.data.rows import RowShape
from astrollava_jax.planning.program import BREAKDOWN, first_line
from astrollava_jax.planning.sweep import Setting
from astrollava_jax.planning.topologies import GIB
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.initial import make_random
from astrollava_jax.run.plan import Ahead, Machine, ahead
from astrollava_jax.run.planned_rows import Rows
from astrollava_jax.run.sweep_settings import settings, with_setting
from astrollava_jax.training.flops import peak_flops
from astrollava_jax.weights.outline import Outline

SEED = 0


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a setting took."""

    setting: str
    rows: int
    micro_batches: int
    samples: int
    peak_bytes: int
    """By the compiler, on one chip."""
    compile_seconds: float
    seconds: list[float]
    """Of each step after the first."""
    losses: list[float]
    useful_flops: float

    @property
    def step(self) -> float:
        """Seconds of a step: the median."""
        return statistics.median(self.seconds)

    def told(self, length: int) -> str:
        """In a line."""
        words = [
            f"{self.setting}: {self.rows} rows in {self.micro_batches} micro-batch(es)",
            f"{self.peak_bytes / GIB:.1f} GiB",
            f"compiled in {self.compile_seconds:.0f} s",
            f"{self.step * 1e3:.0f} ms ({min(self.seconds) * 1e3:.0f} to "
            f"{max(self.seconds) * 1e3:.0f})",
            f"{self.samples / self.step:.2f} samples/s",
            f"{self.rows * length / self.step:.0f} tokens/s",
        ]
        if (peak := peak_flops()) is not None:
            words.append(f"MFU {self.useful_flops / self.step / peak:.1%}")
        return ", ".join(words) + f"; loss {self.losses[0]:.4f} to {self.losses[-1]:.4f}"


def show_measured(
    run: RunConfig, where: Machine, outline: Outline, words: Sequence[str] | None, *,
    rows_per_chip: int | None, steps: int, trace: str | None, as_json: bool,
) -> bool:  # fmt: skip
    """Takes some steps of each setting and prints a line of it as soon as it is done.

    Args:
        run: the run.
        where: the devices of this machine.
        outline: what it trains.
        words: the values of some axes, as for `--sweep`; None = the run as it is.
        rows_per_chip: that a chip computes in a step; None = as the batch has.
        steps: that are timed, after a first.
        trace: a folder for a trace of the last step; None = none is made.
        as_json: print a line of JSON for each setting instead.

    Returns:
        Whether any of them could be run.
    """
    tried: list[Setting | None] = [None]
    if words is not None:
        tried = [*settings(run, where, outline, words, rows_per_chip)]
    stopwatch, done = Stopwatch(steps, trace), 0
    for setting in tried:
        name, how, told = "as it is", run, None
        if setting is not None:
            name, how, told = str(setting), with_setting(run, setting), setting.options
        try:
            throughput = setting is not None or rows_per_chip is not None
            made = ahead(how, where, outline, throughput=throughput, told=told)
            timed = stopwatch.time(name, made)
        except (ValueError, *BREAKDOWN) as error:
            print(f"{name}: {first_line(error)}", flush=True)
            gc.collect()
            continue
        done += 1
        line = json.dumps(dataclasses.asdict(timed)) if as_json else timed.told(run.batch.length)
        print(line, flush=True)
    return done > 0


class Stopwatch:
    """Settings one after the other; weights stay where they are while they serve the next."""

    def __init__(self, steps: int, trace: str | None):
        self._steps, self._trace = steps, trace
        self._key: Any = None
        self._held: Any = None

    def time(self, setting: str, made: Ahead) -> Timed:
        """Compiles a setting and takes its steps."""
        stage = made.stage
        state, frozen, batch = self._arguments(made)
        self._held = None  # the state is given away, and what fails has lost it
        began = time.perf_counter()
        with stage.active():
            program: Any = stage.step.lower(*made.arguments).compile()  # pyright: ignore
            compiled = time.perf_counter() - began
            losses, seconds = [], []
            for number in range(self._steps + 1):
                tracing = self._trace is not None and number == self._steps
                if tracing:
                    jax.profiler.start_trace(self._trace, create_perfetto_trace=True)  # pyright: ignore
                began = time.perf_counter()
                state, metrics = program(state, frozen, batch)
                losses.append(float(metrics["loss"]))
                seconds.append(time.perf_counter() - began)
                if tracing:
                    jax.profiler.stop_trace()
        self._held = state, frozen
        used = program.memory_analysis()
        del program
        return Timed(
            setting, made.rows.count, stage.micro_batches, made.rows.samples,
            used.peak_memory_in_bytes, compiled, seconds[1:], losses, made.useful,
        )  # fmt: skip

    def _arguments(self, made: Ahead) -> tuple[Any, Any, Batch]:
        """What the step takes, on the devices."""
        stage, run, config = made.stage, made.run, made.stage.model.config
        key = stage.model.fates, run.precision, run.lora, stage.shardings
        if self._held is None or key != self._key:
            self._held = None
            gc.collect()
            params = make_random(run, stage)
            trainable = {address: params.pop(address) for address in stage.model.trainable}
            self._held, self._key = (stage.begin(trainable), params), key
        state, frozen = self._held
        batch = random_batch(
            made.rows.shape, made.rows, config.image_facts, config.llm.vocab_size,
        )  # fmt: skip
        return state, frozen, stage.to_devices(batch)


def random_batch(shape: RowShape, rows: Rows, facts: ImageFacts, words: int) -> Batch:
    """Full rows: samples of one length, pictures in front, whatever is no picture is learned."""
    rng = np.random.default_rng(SEED)
    count, length, per_row = rows.count, shape.length, rows.per_row
    tiles = shape.images // per_row
    place = np.arange(length)
    sample = np.minimum(place * per_row // length, per_row - 1)
    start = np.array([np.argmax(sample == n) for n in range(per_row)])[sample]
    within, features = place - start, tiles * facts.tokens
    shown = (within >= 1) & (within <= features)
    feature = np.where(shown, sample * features + within - 1, TEXT)
    learns = np.flatnonzero(~shown & np.append(~shown[1:], False) & (place < length - 1))
    index = np.full(shape.learned, -1)
    index[: len(learns)] = learns[: shape.learned]
    tokens = rng.integers(1, words, (count, length), dtype=np.int32)

    def alike(values: Any) -> np.ndarray:
        return np.tile(np.asarray(values, np.int32), (count, 1))

    row = np.arange(count)[:, None] * per_row
    return Batch(
        tokens=np.where(shown, 0, tokens).astype(np.int32),
        targets=np.roll(tokens, -1, axis=1),
        learned_index=alike(index),
        learned_sample=np.where(index >= 0, row + sample[index], -1).astype(np.int32),
        segment_ids=alike(sample + 1),
        positions=alike(within),
        images=rng.integers(
            0, 256, (count, shape.images, facts.size, facts.size, 3), dtype=np.uint8
        ),
        feature_index=alike(feature),
        lengths=alike(np.bincount(sample, minlength=per_row)),
    )
