"""A run's own steps, a few at a time, as they are asked for: what `bench train` times.

    python -m astrollava_jax.run.timed RUN.yaml PLAN.npz

It is the run as `train` begins it, on the same devices, but for what is written: no run directory,
no log, no checkpoint. What its steps hold is left in PLAN.npz, for other programs to learn the same
of. `bench.turns` says how it is asked.
"""

import contextlib
import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from rich.console import Console

from astrollava_jax import config, files
from astrollava_jax.batch import Batch
from astrollava_jax.bench.turns import Facts, asked
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.initial import initial
from astrollava_jax.run.ready import Ready, get_ready
from astrollava_jax.run.records import deliveries
from astrollava_jax.training.flops import Work, peak_flops, sizes_of, useful_flops
from astrollava_jax.training.prefetch import Prefetch

Plan = dict[str, Any]


def planned(ready: Ready) -> tuple[Plan, Facts]:
    """All steps of a run as arrays, and what they hold together.

    The arrays are those of `Batch` with the steps in front, and the samples one after the other:
    `sample_record`, and where each stands: `sample_step`, `sample_row`, `sample_start`,
    `sample_tokens`.
    """
    data, stage = ready.data, ready.stage
    batches, samples = [], []
    held = {"samples": 0, "tokens": 0, "attended": 0, "learned": 0, "images": 0}
    # Once through all of it: to start workers for that would take longer.
    alone = dataclasses.replace(data, workers=0)
    for step, delivery in enumerate(deliveries(alone, stage, 0)):
        batches.append(delivery.batch.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])))
        found = []
        for row, slots in enumerate(data.plan[step]):
            start = 0
            for slot in slots:
                found.append((slot.sample, slot.record, step, row, start, slot.tokens))
                start += slot.tokens
                held["images"] += slot.images
        samples += sorted(found)
        held["samples"] += delivery.samples
        held["tokens"] += delivery.tokens
        held["attended"] += delivery.attended
        held["learned"] += int(np.count_nonzero(batches[-1].learned_index >= 0))
    names = ("record", "step", "row", "start", "tokens")
    columns = np.array(samples, np.int64)[:, 1:].T
    plan = {f"sample_{name}": column for name, column in zip(names, columns)}
    plan |= {name: np.stack([getattr(b, name) for b in batches]) for name in Batch._fields}
    return plan, held


def facts(ready: Ready, held: Facts) -> Facts:
    """What is to be known of the program and of all its steps together."""
    stage, plan = ready.stage, ready.data.plan
    model = stage.model
    trains = {address: fate != "frozen" for address, fate in model.fates.items()}
    work = Work(held["tokens"], held["learned"], held["attended"], held["images"])
    return held | {
        "steps": plan.total_steps,
        "positions": plan.total_steps * plan.rows * plan.batch.length,
        "rows": plan.rows,
        "parameters": sum(sizes_of(model.shapes).values()),
        "trained": sum(sizes_of({a: model.shapes[a] for a in model.trainable}).values()),
        "useful_flops": useful_flops(model.config, sizes_of(model.shapes), trains, work),
        "peak_flops": peak_flops(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    """Gets a run ready, writes what its steps hold, and takes steps as it is asked."""
    file, target = sys.argv[1:]
    with asked() as answer, contextlib.ExitStack() as ending:
        console = Console(file=sys.stderr, soft_wrap=True, markup=False)
        run = config.load(RunConfig, file)
        ready = get_ready(console, run, (), keep=False)
        plan, held = planned(ready)
        with files.publish(target) as handle:
            np.savez(handle, **plan)
        stage = ready.stage
        params = initial(run, ready.opened, stage, ready.fresh)
        ending.enter_context(stage.active())
        state = stage.begin({address: params.pop(address) for address in stage.model.trainable})
        source = Prefetch(deliveries(ready.data, stage, 0))
        ending.callback(source.close)

        def step() -> float:
            nonlocal state
            state, metrics = stage.step(state, params, next(source).batch)
            return float(metrics["loss"])

        def device_bytes() -> int:
            return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

        answer(facts(ready, held), step, device_bytes)


if __name__ == "__main__":
    main()
