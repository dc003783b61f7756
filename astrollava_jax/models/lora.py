"""LoRA: low-rank adapters beside linear maps, put there from outside the model.

Source: arXiv 2106.09685; initial numbers and scale as PEFT's.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Annotated, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from pydantic import Field

from astrollava_jax.config import config
from astrollava_jax.models.dropout import drop
from astrollava_jax.models.layers import Linear, linears, product
from astrollava_jax.params import matches, select

HEAD = "llm/lm_head"
"""Takes no adapter, as in LLaVA: its scores are made in pieces, and it may be the embedding."""

LORA_A, LORA_B = "lora_a", "lora_b"
"""Last words of the addresses: into the low rank, and out of it."""

Module = TypeVar("Module", bound=nnx.Module)


@config
class LoraConfig:
    """Which linear maps get an adapter, and of what kind."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """What the adapter gives is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of an adapter's inputs that is dropped in training."""
    targets: tuple[str, ...]
    """Patterns over addresses of linear maps, without their last word: `llm/layers/.*_proj`."""

    def __post_init__(self):
        if not self.targets:
            raise ValueError("targets: at least one pattern, such as llm/layers/.*_proj")

    @property
    def scale(self) -> float:
        """What the adapter gives is multiplied by this."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Adapter:
    """How a linear map adds what its adapter gives."""

    address: str
    scale: float
    dropout: float

    def __call__(self, x: Float[Array, "..."], a: nnx.Param, b: nnx.Param) -> Float[Array, "..."]:
        """dropout(x) A B x scale, in the dtype of `x`."""
        down, up = a.get_value().astype(x.dtype), b.get_value().astype(x.dtype)
        num_inputs = down.ndim - 1
        x = drop(x, self.dropout, self.address)
        return product(product(x, down, num_inputs), up, 1) * self.scale


def attach(model: Module, config: LoraConfig, key: Key[Array, ""]) -> Module:
    """The model with a fresh adapter at every target; it gives what it gave without them.

    A is uniform within 1 / sqrt(inputs) and B is 0. The numbers of an adapter follow from `key` and
    its address alone. For a model without numbers: inside `nnx.eval_shape`.

    Raises:
        ValueError: if a pattern matches no linear map; says which there are. If the rank is more
            than the smaller side of a map; lists all of them.
    """
    found = linears(model)
    head = found.pop(HEAD, None)
    try:
        chosen = select(config.targets, found, "linear map")
    except ValueError as error:
        there = ", ".join(sorted(found))
        named = head is not None and any(matches(pattern, HEAD) for pattern in config.targets)
        why = f"\n{HEAD} takes no adapter: its scores are made in pieces" if named else ""
        raise ValueError(f"lora.targets: {error}{why}\nthese can have adapters: {there}") from None
    _check_rank(config.rank, {address: found[address] for address in chosen})
    for address in chosen:
        own = jax.random.fold_in(key, zlib.crc32(address.encode()))
        _attach(found[address], Adapter(address, config.scale, config.dropout), config.rank, own)
    return model


def _check_rank(rank: int, chosen: Mapping[str, Linear]) -> None:
    """Refuses a rank that no product can have: such an adapter is larger than it need be."""
    faults, most = [], rank
    for address, linear in chosen.items():
        shape, axes = linear.kernel.get_value().shape, linear.kernel.get_metadata("axes")
        _, *sides = _parts(shape, len(shape) - len(axes), linear.num_inputs)
        inputs, outputs = map(math.prod, sides)
        if rank > min(inputs, outputs):
            most = min(most, inputs, outputs)
            faults.append(f"{address}: {inputs} x {outputs}")
    if faults:
        raise ValueError(
            f"lora.rank is {rank}, more than the smaller side of these maps: choose {most} at "
            "most, or leave them out of lora.targets:\n  " + "\n  ".join(faults)
        )


def _attach(linear: Linear, adapter: Adapter, rank: int, key: Key[Array, ""]) -> None:
    axes = linear.kernel.get_metadata("axes")
    shape = linear.kernel.get_value().shape
    stacked, inputs, outputs = _parts(shape, len(shape) - len(axes), linear.num_inputs)
    bound = 1.0 / math.sqrt(math.prod(inputs))
    a = jax.random.uniform(key, (*stacked, *inputs, rank), minval=-bound, maxval=bound)
    linear.lora_a = nnx.Param(a, axes=(*axes[: len(inputs)], None))
    linear.lora_b = nnx.Param(
        jnp.zeros((*stacked, rank, *outputs)), axes=(None, *axes[len(inputs) :])
    )
    linear.adapter = adapter


def _parts(
    shape: tuple[int, ...], stacked: int, inputs: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A kernel's layers, inputs and outputs."""
    return shape[:stacked], shape[stacked : stacked + inputs], shape[stacked + inputs :]
