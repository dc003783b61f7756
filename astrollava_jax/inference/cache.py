"""The decoder with a memory: keys and values of earlier positions are kept, not computed again."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from astrollava_jax.models.attention import masked_attention
from astrollava_jax.models.decoder import Decoder
from astrollava_jax.sharding import shard


class Cache(NamedTuple):
    """What all layers remember of each row: at most S positions, filled from the left.

    L counts the steps of the walk over layers, A the blocks of one step.
    """

    keys: Float[Array, "L A B S K H"]
    values: Float[Array, "L A B S K H"]


def empty_cache(llm: Decoder, rows: int, length: int, dtype: jnp.dtype) -> Cache:
    """Room for `length` positions in each row."""
    config, steps = llm.config, llm.num_steps
    shape = (steps, config.num_layers // steps, rows, length, config.num_kv_heads, config.head_dim)
    nothing = jnp.zeros(shape, dtype)
    nothing = shard(nothing, "layers", None, "batch", "length", "heads", "head_dim")
    return Cache(nothing, nothing)


def read_on(
    llm: Decoder, x: Float[Array, "B T D"], positions: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
    """The last normed hidden states of some more positions of each row, and a longer memory.

    A position sees itself and what stands before it. What an earlier call left at these positions,
    say for the padding of a prompt, is overwritten before anything can see it.
    """
    angles = llm.angles(positions)
    rows = jnp.arange(x.shape[0])[:, None]
    distance = positions[..., None] - jnp.arange(cache.keys.shape[3])  # B T S
    graphdef, layers = nnx.split(llm.layers)

    def one(x, item):
        layer, keys, values = item
        blocks = itertools.count()

        def attend(q, k, v, *, window=None, softcap=None, scale=None):
            nonlocal keys, values
            block = next(blocks)
            keys = keys.at[block, rows, positions].set(k)
            values = values.at[block, rows, positions].set(v)
            seen = distance >= 0
            if window is not None:
                seen &= distance < window
            return masked_attention(
                q, keys[block], values[block], seen, softcap=softcap, scale=scale
            )

        x = nnx.merge(graphdef, layer)(x, angles, attend)
        return x, Cache(keys, values)

    x, cache = jax.lax.scan(one, x, (layers, *cache))
    return llm.norm(x), cache
