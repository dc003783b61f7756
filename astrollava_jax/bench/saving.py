"""What a checkpoint costs a step: stage 1 of a 7B, its projector with two moments in float32.

    python -m astrollava_jax.bench.saving DIR [--saves 4]

The numbers are random, so that they do not compress. One line for each save: how long it held the
step up, and when the step was good.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp

from astrollava_jax import files
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState

SHAPES = {
    "projector/layers_0/kernel": (1024, 4096),
    "projector/layers_0/bias": (4096,),
    "projector/layers_1/kernel": (4096, 4096),
    "projector/layers_1/bias": (4096,),
}
"""LLaVA-1.5-7B's: from CLIP-L's width to Vicuna's."""


@jax.jit
def _state(seed: jax.Array) -> TrainState:
    """Random numbers, which do not compress."""

    def some(part: int) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), part), len(SHAPES))
        return {a: jax.random.normal(k, s, jnp.float32) for k, (a, s) in zip(keys, SHAPES.items())}

    return TrainState(some(0), AdamState(seed, some(1), some(2)))


def main() -> None:
    """Prints one JSON line per save: seconds until `save` returned, and until the step was good."""
    parser = argparse.ArgumentParser(
        prog="python -m astrollava_jax.bench.saving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="a folder for the checkpoints; they stay there")
    parser.add_argument("--saves", type=int, default=4)
    arguments = parser.parse_args()
    checkpoints = Checkpoints(files.join(arguments.folder, "checkpoints"), keep=2)
    checkpoints.prepare(_state(jnp.int32(0)))
    for step in range(1, arguments.saves + 1):
        state = jax.block_until_ready(_state(jnp.int32(step)))
        begun = time.perf_counter()
        checkpoints.save(state, Progress(step=step), {})
        returned = time.perf_counter()
        checkpoints.wait()
        good = time.perf_counter()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        facts = {"step": step, "bytes": size, "device": jax.devices()[0].device_kind}
        facts |= {"blocking_seconds": returned - begun, "good_after_seconds": good - begun}
        print(json.dumps(facts), flush=True)
    begun = time.perf_counter()
    assert checkpoints.restore_newest(state) is not None
    print(json.dumps({"restored_and_verified_seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
