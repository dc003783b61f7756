"""What all families of decoders share: words, stacked layers, a norm, a head.

A family is a file beside this one: a config, and the module of one layer. See `llama.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from astrollava_jax.config import config
from astrollava_jax.models.attention import Kernel, attention
from astrollava_jax.models.layers import Embedding, Linear, stack, walk
from astrollava_jax.models.remat import MLP, PROJECTIONS, Remat
from astrollava_jax.models.rotary import Angles, RopeScaling, rotary_angles, rotate


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

    @property
    def scores_softcap(self) -> float | None:
        """What no score of attention passes."""
        return None


class Attention(nnx.Module):
    """Causal attention with rotary positions.

    Args:
        config: the shape.
        bias: whether queries, keys and values are shifted.
        window: positions that a query sees, its own included; None for all.
        softcap: no score passes it.
        scale: of the scores; the usual one unless given.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        bias: bool = False,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        heads = ("embed", "heads", "head_dim")
        self.window, self.softcap, self.score_scale = window, softcap, scale
        self.q_proj = Linear((D,), (N, H), heads, bias=bias, rngs=rngs)
        self.k_proj = Linear((D,), (K, H), heads, bias=bias, rngs=rngs)
        self.v_proj = Linear((D,), (K, H), heads, bias=bias, rngs=rngs)
        self.o_proj = Linear((N, H), (D,), ("heads", "head_dim", "embed"), rngs=rngs)

    @jax.named_scope("attn")
    def __call__(
        self, x: Float[Array, "B T D"], angles: Angles, attend: Attend
    ) -> Float[Array, "B T D"]:
        """What each position learns from the earlier ones of its sample."""
        q, k = rotate(self.q_proj(x), angles), rotate(self.k_proj(x), angles)
        q, k, v = (checkpoint_name(x, PROJECTIONS) for x in (q, k, self.v_proj(x)))
        window, softcap, scale = self.window, self.softcap, self.score_scale
        gathered = attend(q, k, v, window=window, softcap=softcap, scale=scale)
        return checkpoint_name(self.o_proj(gathered), PROJECTIONS)


class Mlp(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(
        self, config: DecoderConfig, activation: Callable[[Array], Array], *, rngs: nnx.Rngs
    ):
        D, F = config.embed_dim, config.mlp_dim
        self.activation = activation
        self.gate_proj = Linear((D,), (F,), ("embed", "mlp"), rngs=rngs)
        self.up_proj = Linear((D,), (F,), ("embed", "mlp"), rngs=rngs)
        self.down_proj = Linear((F,), (D,), ("mlp", "embed"), rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The gated hidden units, mapped back."""
        gate, up = (checkpoint_name(y, MLP) for y in (self.gate_proj(x), self.up_proj(x)))
        return self.down_proj(self.activation(gate) * up)


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

    @jax.named_scope("llm")
    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        lengths: Int[Array, "B S"] | None = None,
        *,
        remat: Remat = "none",
        kernel: Kernel = "xla",
    ) -> Float[Array, "B T D"]:
        """The last normed hidden states of embedded positions."""
        angles = self.angles(positions)
        attend = functools.partial(
            attention, segment_ids=segment_ids, lengths=lengths, kernel=kernel
        )
        x = walk(self.layers, x, lambda layer, x: layer(x, angles, attend), remat=remat)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of every word, in the dtype of `hidden`."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return hidden @ self.embed.embedding.get_value().astype(hidden.dtype).T
