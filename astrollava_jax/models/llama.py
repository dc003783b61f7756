"""The Llama decoder: RMSNorm, rotary positions, grouped queries, SwiGLU."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from astrollava_jax.config import config
from astrollava_jax.models.attention import attention
from astrollava_jax.models.layers import (
    Embedding,
    Linear,
    Remat,
    RmsNorm,
    rotary_angles,
    rotate,
    stack,
    walk,
)
from astrollava_jax.sharding import shard

Attend = Callable[
    [Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]],
    Float[Array, "B T N H"],
]
"""What turned queries gather from keys and values: of their row, or of what is remembered."""


@config
class LlamaConfig:
    """The shape of a Llama decoder (Llama 1 and 2, Vicuna, SmolLM2)."""

    type: Literal["llama"] = "llama"
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
    tie_embeddings: bool = False
    """The head is the embedding, transposed."""

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary turns pairs")

    def build(self, rngs: nnx.Rngs) -> "Llama":
        """The decoder, with fresh parameters."""
        return Llama(self, rngs=rngs)


class Attention(nnx.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        heads = ("embed", "heads", "head_dim")
        self.q_proj = Linear((D,), (N, H), heads, rngs=rngs)
        self.k_proj = Linear((D,), (K, H), heads, rngs=rngs)
        self.v_proj = Linear((D,), (K, H), heads, rngs=rngs)
        self.o_proj = Linear((N, H), (D,), ("heads", "head_dim", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Any, attend: Attend
    ) -> Float[Array, "B T D"]:
        """What each position learns from the earlier ones of its sample."""
        q = rotate(self.q_proj(x), angles)
        k = rotate(self.k_proj(x), angles)
        return self.o_proj(attend(q, k, self.v_proj(x)))


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, F = config.embed_dim, config.mlp_dim
        self.gate_proj = Linear((D,), (F,), ("embed", "mlp"), rngs=rngs)
        self.up_proj = Linear((D,), (F,), ("embed", "mlp"), rngs=rngs)
        self.down_proj = Linear((F,), (D,), ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The gated hidden units, mapped back."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One decoder layer: norm, attention, norm, MLP, each added to its input."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.norm1 = RmsNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = RmsNorm(config.embed_dim, config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Any, attend: Attend
    ) -> Float[Array, "B T D"]:
        """The next layer's input."""
        x = x + self.attn(self.norm1(x), angles, attend)
        x = x + self.mlp(self.norm2(x))
        return shard(x, "batch", "length", None)


class Llama(nnx.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, ("vocab", "embed"), rngs=rngs)
        self.layers = stack(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        self.norm = RmsNorm(config.embed_dim, config.norm_eps)
        self.lm_head = (
            None
            if config.tie_embeddings
            else Linear((config.embed_dim,), (config.vocab_size,), ("embed", "vocab"), rngs=rngs)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        *,
        remat: Remat = "none",
    ) -> Float[Array, "B T D"]:
        """The last normed hidden states of embedded positions."""
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        attend = functools.partial(attention, segment_ids=segment_ids)
        x = walk(self.layers, x, lambda block, x: block(x, angles, attend), remat=remat)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of every word, in the dtype of `hidden`."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return hidden @ self.embed.embedding.get_value().astype(hidden.dtype).T
