"""Useful work: the FLOPs that a step needs, and what the chips could do in its time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from astrollava_jax.chips import PEAK_FLOPS
from astrollava_jax.models.llava import LlavaConfig

MATRICES = ("kernel", "lora_a", "lora_b")
"""Last words of the addresses of what activations are multiplied by."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step holds."""

    tokens: int
    """Filled positions."""
    learned: int
    """Positions with loss."""
    attended: int
    """Pairs (query, key) inside samples, not later than the query."""
    images: int
    """What the tower encodes: a tile is an image."""


def peak_flops() -> float | None:
    """FLOP/s of all chips together; None where the kind is not in the table (a CPU)."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def useful_flops(
    config: LlavaConfig, sizes: Mapping[str, int], trains: Mapping[str, bool], work: Work
) -> float:
    """FLOPs that a step needs, whatever it really executes.

    2 per weight and place going forward, 2 more where a gradient passes through to something that
    trains, 2 more where the weight itself trains. Causal attention counts its own pairs, the head
    its learned positions, the tower the blocks that it runs; rematerialisation never counts.
    """
    tower_trains = any(trains[address] for address in trains if address.startswith("vision/"))
    passes = {"vision": tower_trains, "projector": tower_trains, "llm": True}
    patches = config.vision.num_patches
    places = {
        "vision": work.images * (patches + config.vision.num_prefix),
        "projector": work.images * patches,
        "llm": work.tokens,
    }
    total = 0.0
    for address, size in sizes.items():
        if address.rsplit("/", 1)[-1] not in MATRICES:
            continue
        part = address.split("/", 1)[0]
        where = work.learned if address.startswith("llm/lm_head/") else places[part]
        part_run = blocks_run(config) if address.startswith("vision/layers/") else 1.0
        total += 2 * (1 + passes[part] + trains[address]) * size * part_run * where
    if config.llm.tie_embeddings:
        table = "llm/embed/embedding"
        total += 2 * (2 + trains[table]) * sizes[table] * work.learned
    return total + attention_flops(config, work, tower_trains)


def attention_flops(config: LlavaConfig, work: Work, tower_trains: bool) -> float:
    """FLOPs of scores and weighted sums: 4 per pair, head and width; the backward pass is twice."""
    llm, vision = config.llm, config.vision
    decoder = llm.num_layers * llm.num_heads * llm.head_dim * work.attended
    pairs = work.images * (vision.num_patches + vision.num_prefix) ** 2
    tower = vision.num_layers * blocks_run(config) * vision.embed_dim * pairs
    return 4 * (3 * decoder + (3 if tower_trains else 1) * tower)


def blocks_run(config: LlavaConfig) -> float:
    """The part of the tower's blocks that is computed."""
    depth, layer = config.vision.num_layers, config.select_layer
    return (layer if layer >= 0 else depth + 1 + layer) / depth


def sizes_of(params: Mapping[str, Any]) -> dict[str, int]:
    """The number of scalars of every parameter."""
    return {address: array.size for address, array in params.items()}
