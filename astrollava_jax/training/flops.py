"""Useful work: the FLOPs that a step needs, and what the chips could do in its time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from astrollava_jax.chips import PEAK_FLOPS
from astrollava_jax.models.llava import LlavaConfig

MATRICES = ("kernel", "lora_a", "lora_b")
"""Last words of the addresses of what activations are multiplied by."""

_PARTS = ("vision", "projector", "image_newline", "llm")
_INSIDE = {"layers": 1, "norm": 2, "post_norm": 2, "lm_head": 3}
"""In the tower and in the decoder; what is not named, as positions and words, comes first."""


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
    its learned positions, the tower the blocks that it runs; rematerialisation never counts. A
    stack of layers is one: where something in it trains, a gradient passes through all of it.
    """
    first = min((_depth(address) for address, one in trains.items() if one), default=None)
    total = 0.0
    for address, size in sizes.items():
        if address.rsplit("/", 1)[-1] in MATRICES:
            times = 1 + _passes(address, first) + trains[address]
            total += 2 * times * size * _places(address, config, work)
    if config.llm.tie_embeddings:
        table = "llm/embed/embedding"
        times = 1 + _passes("llm/lm_head", first) + trains[table]
        total += 2 * times * sizes[table] * work.learned
    stacks = {stack: 1 + 2 * _passes(stack, first) for stack in ("llm/layers", "vision/layers")}
    decoder, tower = attention_flops(config, work)
    return total + stacks["llm/layers"] * decoder + stacks["vision/layers"] * tower


def attention_flops(config: LlavaConfig, work: Work) -> tuple[float, float]:
    """FLOPs of the decoder's and of the tower's scores and weighted sums, going forward.

    4 per pair, head and width; the backward pass takes twice as many.
    """
    llm, vision = config.llm, config.vision
    decoder = llm.num_layers * llm.num_heads * llm.head_dim * work.attended
    pairs = work.images * (vision.num_patches + vision.num_prefix) ** 2
    tower = vision.num_layers * blocks_run(config) * vision.embed_dim * pairs
    return 4.0 * decoder, 4.0 * tower


def blocks_run(config: LlavaConfig) -> float:
    """The part of the tower's blocks that is computed."""
    depth, layer = config.vision.num_layers, config.select_layer
    return (layer if layer >= 0 else depth + 1 + layer) / depth


def _depth(address: str) -> tuple[int, int]:
    """How far from the pixels a parameter stands: gradients come from the far end."""
    part, module = address.split("/")[:2]
    inside = int(module.rpartition("_")[2]) if part == "projector" else _INSIDE.get(module, 0)
    return _PARTS.index(part), inside


def _passes(address: str, first: tuple[int, int] | None) -> bool:
    """Whether a gradient goes on to what a weight is multiplied by; `first` is what trains first.

    In a stack, the layers are each other's input.
    """
    depth, stacked = _depth(address), address.split("/")[1] == "layers"
    return first is not None and (first < depth or (stacked and first == depth))


def _places(address: str, config: LlavaConfig, work: Work) -> float | int:
    """By how many vectors a weight is multiplied in a step, a mean over its stack."""
    vision = config.vision
    match address.split("/")[:2]:
        case ["vision", "patch_embed"]:
            return work.images * vision.num_patches
        case ["vision", "layers"]:
            return work.images * (vision.num_patches + vision.num_prefix) * blocks_run(config)
        case ["vision", _]:  # behind the blocks, kept for export: never computed
            return 0
        case ["projector", _]:
            return work.images * config.image_facts.tokens
        case ["llm", "lm_head"]:
            return work.learned
    return work.tokens


def sizes_of(params: Mapping[str, Any]) -> dict[str, int]:
    """The number of scalars of every parameter."""
    return {address: array.size for address, array in params.items()}
