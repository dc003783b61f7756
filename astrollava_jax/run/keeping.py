"""What a layer keeps for the backward pass, where a run leaves it to the memory that is there."""

import dataclasses
import math
import os

import jax
import numpy as np
from jax.sharding import Mesh

from astrollava_jax import files
from astrollava_jax.meshing import Frozen, size
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
from astrollava_jax.sharding import agree, rows_multiple
from astrollava_jax.training.gradients import READ_ONCE

USED = {"gpu": 0.97, "cpu": 0.5}
USED_ELSEWHERE = 0.92
"""The part of a device's memory that may be counted on, by its platform. On an H200 the
estimate is within 3% of the compiler's figure, on TPUs up to 7% below. A processor's memory is
others' too."""

WORKSPACE = 2.3
"""What the backward pass of one layer holds, in all that `dots_attention` keeps of a layer: by the
compiler's figures of LLaVA-1.5-7B on an H200."""

SCORES = 6
"""Times all scores of a row that ordinary attention holds beside it, by XLA's figures on a CPU."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux tells how much of its memory a container may use."""


def kept_numbers(llm: DecoderConfig, num_divisors: int, tensor: int = 1) -> dict[Remat, int]:
    """Numbers in the dtype of compute that a device keeps of a layer's position, by what is kept.

    What spares most comes first.

    Args:
        llm: the decoder.
        num_divisors: of a softmax, for each query and head.
        tensor: how many devices share the heads and the middle of a layer.
    """
    queries, pairs = llm.num_heads * llm.head_dim, 2 * llm.num_kv_heads * llm.head_dim
    # The layer's input; what attention gathered, and its softmax's divisors in float32.
    attention = llm.embed_dim + (queries + 2 * llm.num_heads * num_divisors) // tensor
    mlp, projections = 2 * llm.mlp_dim // tensor, (queries + pairs) // tensor + llm.embed_dim
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


def platform_of(mesh: Mesh) -> str:
    """Of its devices, in JAX's words."""
    return mesh.devices.flat[0].platform


def processor_memory() -> int:
    """Bytes of the machine's memory, or of the container's, for each device that is a processor.

    All processes must call it: they go by process 0's, and may all be on one machine.
    """
    told = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in filter(files.exists, _LIMITS):
        limit = files.read_text(path).strip()
        told += [int(limit)] if limit.isdecimal() else []  # or `max`
    return agree(min(told) // jax.device_count())


def decided(
    run: RunConfig, model: Model, mesh: Mesh, frozen: Frozen, rows: int, samples: int,
    memory: int | None,
) -> tuple[RunConfig, str | None]:  # fmt: skip
    """The run with a row of remat, and what to tell of the choice, if it was left open.

    What fits is estimated from shapes alone; it is as little as can be where the
    tower trains, or XLA computes attention on an accelerator.

    Args:
        run: the run.
        model: what it trains.
        mesh: real devices, or described ones.
        frozen: whether what does not train is whole on every device of fsdp.
        rows: of a step, over all devices.
        samples: that a row can hold.
        memory: that a program may use of one device, in bytes; None where it does not tell: a CPU
            has the machine's, of another device as little is kept as can be.
    """
    if run.remat != "auto":
        return run, None
    platform = platform_of(mesh)
    if memory is None and platform == "cpu":
        memory = processor_memory()
    if memory is None:
        return dataclasses.replace(run, remat="full"), None
    if any(address.startswith("vision/") for address in model.trainable):
        # Of CLIP-L 40 MiB a layer and image beside scores, and each tile is an image.
        return dataclasses.replace(run, remat="full"), (
            "remat: full, for what a tower that trains keeps is not estimated; say more to try it"
        )
    by_xla = attention_kernel(run, model, mesh, rows)[0] == "xla"
    if by_xla and platform != "cpu":
        # All scores of a row at once, and their gradients: of the length's square.
        return dataclasses.replace(run, remat="full"), (
            "remat: full, for what attention by XLA holds is not estimated; say more to try it"
        )
    needed = _needed(run, model, mesh, frozen, rows, samples, by_xla)
    room = memory * USED.get(platform, USED_ELSEWHERE)
    fitting: list[Remat] = [row for row, count in needed.items() if count <= room]
    chosen: Remat = fitting[0] if fitting else "full"
    return dataclasses.replace(run, remat=chosen), (
        f"remat: {chosen}, by which some {size(needed[chosen])} of {size(memory)} of a device are "
        "needed"
    )


def _needed(
    run: RunConfig, model: Model, mesh: Mesh, frozen: Frozen, rows: int, samples: int, by_xla: bool
) -> dict[Remat, int]:
    """Bytes of one device by what is kept, in the order of `kept_numbers`."""
    llm, tensor = model.config.llm, mesh.shape["tensor"]
    at_once = rows_at_once(run, mesh, rows)
    numbers = at_once * run.batch.length * np.dtype(run.precision.compute).itemsize
    several = rows > at_once * rows_multiple(mesh)
    held = _held(run, model, mesh, frozen, several)
    held += WORKSPACE * kept_numbers(llm, 1, tensor)["dots_attention"] * numbers
    if by_xla:
        held += SCORES * llm.num_heads * run.batch.length * numbers // tensor
    kept_of = kept_numbers(llm, divisors(platform_of(mesh), samples), tensor)
    return {row: int(held + kept * numbers * llm.num_layers) for row, kept in kept_of.items()}


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
