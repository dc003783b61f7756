"""The decoder with a memory: keys and values of earlier positions are kept, not computed again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from astrollava_jax.models.attention import masked_attention
from astrollava_jax.models.layers import rotary_angles
from astrollava_jax.models.llama import Llama
from astrollava_jax.sharding import shard


class Cache(NamedTuple):
    """What all layers remember of each row: at most S positions, filled from the left."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


def empty_cache(llm: Llama, rows: int, length: int, dtype: jnp.dtype) -> Cache:
    """Room for `length` positions in each row."""
    config = llm.config
    shape = (config.num_layers, rows, length, config.num_kv_heads, config.head_dim)
    nothing = shard(jnp.zeros(shape, dtype), "layers", "batch", "length", "heads", "head_dim")
    return Cache(nothing, nothing)


def read_on(
    llm: Llama, x: Float[Array, "B T D"], positions: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
    """The last normed hidden states of some more positions of each row, and a longer memory.

    A position sees itself and what stands before it. What an earlier call left at these positions,
    say for the padding of a prompt, is overwritten before anything can see it.
    """
    angles = rotary_angles(positions, llm.config.head_dim, llm.config.rope_theta)
    rows = jnp.arange(x.shape[0])[:, None]
    seen = jnp.arange(cache.keys.shape[2]) <= positions[..., None]  # B T S
    graphdef, layers = nnx.split(llm.layers)

    def one(x, item):
        layer, keys, values = item

        def attend(q, k, v):
            nonlocal keys, values
            keys, values = keys.at[rows, positions].set(k), values.at[rows, positions].set(v)
            return masked_attention(q, keys, values, seen)

        x = nnx.merge(graphdef, layer)(x, angles, attend)
        return x, Cache(keys, values)

    x, cache = jax.lax.scan(one, x, (layers, *cache))
    return llm.norm(x), cache
