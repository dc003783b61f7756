"""Dropout whose masks follow from the run's seed, the update, the row, the layer and the address.

A mask is drawn only inside `masks`, which a training step enters while it is traced: evaluation
and answers enter none, and nothing is dropped. It hangs on nothing else, so that a step which is
done again, in a rematerialised backward pass, after a restart, in other micro-batches or on another
mesh drops the same numbers.
"""

import contextlib
import contextvars
import dataclasses
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from astrollava_jax.sharding import shard


class Draw(NamedTuple):
    """What the masks of some rows follow from; of a whole step, `[micro-batch, ...]`."""

    key: Key[Array, "*A"]
    """Another one in every update."""
    rows: Int[Array, "*A B"]
    """The number of each row in its step."""


@dataclasses.dataclass(frozen=True)
class _Scope:
    draw: Draw
    layer: Int[Array, ""] | None = None


_ENTERED: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("dropout", default=None)


def draws(seed: int, update: Int[Array, ""], micro_batches: int, rows: int) -> Draw:
    """What the masks of a step follow from, by micro-batch."""
    key = jax.random.fold_in(jax.random.key(seed), update)
    numbers = jnp.arange(micro_batches * rows).reshape(micro_batches, rows)
    return Draw(jnp.broadcast_to(key, micro_batches), numbers)


@contextlib.contextmanager
def masks(draw: Draw | None) -> Iterator[None]:
    """Inside, `drop` drops; None enters nothing."""
    if draw is None:
        yield
        return
    with _entered(_Scope(draw)):
        yield


def active() -> bool:
    """Whether numbers are dropped here."""
    return _ENTERED.get() is not None


@contextlib.contextmanager
def in_layer(number: Int[Array, ""] | None) -> Iterator[None]:
    """Inside, masks are those of a layer."""
    scope = _ENTERED.get()
    if scope is None:
        yield
        return
    with _entered(dataclasses.replace(scope, layer=number)):
        yield


def drop(x: Float[Array, "B ..."], rate: float, address: str) -> Float[Array, "B ..."]:
    """`x` with each number dropped at this rate, the others made larger to make up for it.

    The first dim holds the rows of the step, or equally many parts of each, in order.
    """
    scope = _ENTERED.get()
    if scope is None or rate == 0:
        return x
    key = jax.random.fold_in(scope.draw.key, zlib.crc32(address.encode()))
    if scope.layer is not None:
        key = jax.random.fold_in(key, scope.layer)
    rows = scope.draw.rows
    parts, rest = divmod(x.shape[0], rows.shape[0])
    assert rest == 0, f"{address}: {x.shape[0]} is not a multiple of {rows.shape[0]} rows"
    numbers = shard((rows[:, None] * parts + jnp.arange(parts)).reshape(-1), "batch")

    def row(number: Int[Array, ""]) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(row)(numbers), x / (1 - rate), 0)


@contextlib.contextmanager
def _entered(scope: _Scope) -> Iterator[None]:
    token = _ENTERED.set(scope)
    try:
        yield
    finally:
        _ENTERED.reset(token)
