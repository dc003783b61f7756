"""What all families of decoders share: words, stacked layers, a norm, a head.

A family is a file beside this one: a config, and the module of one layer. See `llama.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int

from astrollava_jax.config import config
from astrollava_jax.models.attention import attention
from astrollava_jax.models.layers import Embedding, Linear, Remat, stack, walk
from astrollava_jax.models.rotary import Angles, RopeScaling, rotary_angles


@runtime_checkable
class Attend(Protocol):
    """What turned queries gather from keys and values: of their row, or of what is remembered."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> Float[Array, "B T N H"]:
        """The gathered values; as `attention`."""
        ...


@config
class DecoderConfig:
    """The shape that every decoder has."""

    vocab_size: int
    """Rows of the embedding, unused ones included."""
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How positions beyond the trained ones are told apart."""
    tie_embeddings: bool = False
    """The head is the embedding, transposed."""

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary turns pairs")


class Decoder(nnx.Module):
    """Embedding, layers, norm, head.

    Args:
        config: the family's.
        layer: makes what one step of the walk applies: `layer(x, angles, attend)`.
        norm: the last one.
        num_steps: layers that are stacked; each may hold several blocks, and calls `attend` once
            for each of them.
        embed_multiplier: of the words' vectors.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layer: Callable[[nnx.Rngs], nnx.Module],
        norm: Any,
        *,
        num_steps: int | None = None,
        embed_multiplier: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.num_steps = num_steps or config.num_layers
        D, V = config.embed_dim, config.vocab_size
        self.embed = Embedding(V, D, ("vocab", "embed"), multiplier=embed_multiplier, rngs=rngs)
        self.layers = stack(self.num_steps, layer, rngs)
        self.norm = norm
        tied = config.tie_embeddings
        self.lm_head = None if tied else Linear((D,), (V,), ("embed", "vocab"), rngs=rngs)

    def angles(self, positions: Int[Array, "B T"]) -> Angles:
        """The rotary angles of some positions."""
        config = self.config
        return rotary_angles(positions, config.head_dim, config.rope_theta, config.rope_scaling)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        *,
        remat: Remat = "none",
    ) -> Float[Array, "B T D"]:
        """The last normed hidden states of embedded positions."""
        angles = self.angles(positions)
        attend = functools.partial(attention, segment_ids=segment_ids)
        x = walk(self.layers, x, lambda layer, x: layer(x, angles, attend), remat=remat)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of every word, in the dtype of `hidden`."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return hidden @ self.embed.embedding.get_value().astype(hidden.dtype).T
