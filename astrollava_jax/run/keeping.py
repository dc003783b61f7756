"""What a layer keeps for the backward pass, where a run leaves it to the memory that is there."""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from astrollava_jax.meshing import Frozen
from astrollava_jax.models.decoder import DecoderConfig
from astrollava_jax.models.remat import Remat
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.layout import stored_bytes
from astrollava_jax.run.stage import (
    Model,
    attention_kernel,
    narrow_gradients,
    rows_at_once,
    shardings_of,
)
from astrollava_jax.sharding import rows_multiple
from astrollava_jax.training.gradients import READ_ONCE

RANKED: tuple[Remat, ...] = ("dots_attention", "mlp", "projections", "attention", "full")
"""The rows of remat from which one is chosen: what spares most first."""

USED = {"gpu": 0.97}
USED_ELSEWHERE = 0.92
"""The part of a device's memory that may be counted on, by its platform. On an H200 the
estimate is within 2% of the compiler's figure, on TPUs up to 7% below."""

WORKSPACE = 2.3
"""What the backward pass of one layer holds, in all that `dots_attention` keeps of a layer: by the
compiler's figures of LLaVA-1.5-7B on an H200."""

GIB = 2**30


def kept_numbers(llm: DecoderConfig, num_divisors: int) -> dict[Remat, int]:
    """Numbers in the dtype of compute that a layer keeps of a position, by what is kept.

    Args:
        llm: the decoder.
        num_divisors: of a softmax, for each query and head.
    """
    queries, pairs = llm.num_heads * llm.head_dim, 2 * llm.num_kv_heads * llm.head_dim
    # The layer's input; what attention gathered, and its softmax's divisors in float32.
    attention = llm.embed_dim + queries + 2 * llm.num_heads * num_divisors
    mlp, projections = 2 * llm.mlp_dim, queries + pairs + llm.embed_dim
    return {
        "dots_attention": attention + mlp + projections,
        "mlp": attention + mlp,
        "projections": attention + projections,
        "attention": attention,
        "full": llm.embed_dim,
    }


def divisors(platform: str, samples: int) -> int:
    """Of each softmax: cuDNN has those of a whole row for every sample, and for what is behind."""
    return samples + 1 if platform == "gpu" else 1


def decided(
    run: RunConfig, model: Model, mesh: Mesh, frozen: Frozen, rows: int, samples: int,
    memory: int | None,
) -> tuple[RunConfig, str | None]:  # fmt: skip
    """The run with a row of remat, and what to tell of the choice, if it was left open.

    What fits is estimated from shapes alone; it is as little as can be where the
    tower trains, or XLA computes attention.

    Args:
        run: the run.
        model: what it trains.
        mesh: real devices, or described ones.
        frozen: whether what does not train is whole on every device of fsdp.
        rows: of a step, over all devices.
        samples: that a row can hold.
        memory: that a program may use of one device, in bytes; None where it does not tell: then as
            little is kept as on any device.
    """
    if run.remat != "auto":
        return run, None
    if memory is None:
        return dataclasses.replace(run, remat="full"), None
    if any(address.startswith("vision/") for address in model.trainable):
        # Of CLIP-L 40 MiB a layer and image beside scores, and each tile is an image.
        return dataclasses.replace(run, remat="full"), (
            "remat: full, for what a tower that trains keeps is not estimated; say more to try it"
        )
    if attention_kernel(run, model, mesh, rows)[0] == "xla":
        # All scores of a row at once, and their gradients: of the length's square.
        return dataclasses.replace(run, remat="full"), (
            "remat: full, for what attention by XLA holds is not estimated; say more to try it"
        )
    at_once = rows_at_once(run, mesh, rows)
    size = np.dtype(run.precision.compute).itemsize
    layer = at_once * run.batch.length * size
    platform = mesh.devices.flat[0].platform
    kept = kept_numbers(model.config.llm, divisors(platform, samples))
    several = rows > at_once * rows_multiple(mesh)
    workspace = WORKSPACE * kept_numbers(model.config.llm, 1)["dots_attention"] * layer
    held = _held(run, model, mesh, frozen, several) + workspace
    needed = {row: held + kept[row] * layer * model.config.llm.num_layers for row in RANKED}
    room = memory * USED.get(platform, USED_ELSEWHERE)
    chosen = next((row for row in RANKED if needed[row] <= room), RANKED[-1])
    return dataclasses.replace(run, remat=chosen), (
        f"remat: {chosen}, by which some {needed[chosen] / GIB:.0f} of {memory / GIB:.0f} GiB of a "
        f"device are needed"
    )


def _held(run: RunConfig, model: Model, mesh: Mesh, frozen: Frozen, several: bool) -> float:
    """Bytes of one device for weights, moments and gradients, these twice where they are added."""
    shardings, total = shardings_of(model, mesh, frozen), 0.0
    narrow = narrow_gradients(run, mesh.devices.flat[0])
    wide = np.dtype(run.precision.trainable).itemsize
    for address, shape in model.shapes.items():
        part = math.prod(shardings[address].shard_shape(shape.shape)) / shape.size
        if address in model.frozen:
            total += part * stored_bytes(run, model, address)
            continue
        is_narrow = narrow is not None and READ_ONCE.fullmatch(address)
        gradient = np.dtype(narrow).itemsize if is_narrow else wide
        total += part * shape.size * (3 * wide + gradient + (wide if several else 0))
    return total
