"""The Llama decoder: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from astrollava_jax.config import config
from astrollava_jax.models.decoder import Attend, Decoder, DecoderConfig
from astrollava_jax.models.layers import Linear, RmsNorm
from astrollava_jax.models.rotary import Angles, rotate
from astrollava_jax.sharding import shard


@config
class LlamaConfig(DecoderConfig):
    """The shape of a Llama (1, 2, 3, Vicuna, SmolLM2), a Mistral or a Qwen2."""

    type: Literal["llama"] = "llama"
    qkv_bias: bool = False
    """Queries, keys and values are shifted (Qwen2)."""
    window: int | None = None
    """How many positions a query sees, its own included (Mistral 0.1: 4096); null for all."""

    def build(self, rngs: nnx.Rngs) -> "Llama":
        """The decoder, with fresh parameters."""
        return Llama(self, rngs=rngs)


class Attention(nnx.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        heads, bias = ("embed", "heads", "head_dim"), config.qkv_bias
        self.window = config.window
        self.q_proj = Linear((D,), (N, H), heads, bias=bias, rngs=rngs)
        self.k_proj = Linear((D,), (K, H), heads, bias=bias, rngs=rngs)
        self.v_proj = Linear((D,), (K, H), heads, bias=bias, rngs=rngs)
        self.o_proj = Linear((N, H), (D,), ("heads", "head_dim", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Angles, attend: Attend
    ) -> Float[Array, "B T D"]:
        """What each position learns from the earlier ones of its sample."""
        q = rotate(self.q_proj(x), angles)
        k = rotate(self.k_proj(x), angles)
        return self.o_proj(attend(q, k, self.v_proj(x), window=self.window))


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
        self, x: Float[Array, "B T D"], angles: Angles, attend: Attend
    ) -> Float[Array, "B T D"]:
        """The next layer's input."""
        x = x + self.attn(self.norm1(x), angles, attend)
        x = x + self.mlp(self.norm2(x))
        return shard(x, "batch", "length", None)


class Llama(Decoder):
    """Embedding, blocks, norm, head."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        norm = RmsNorm(config.embed_dim, config.norm_eps)
        super().__init__(config, lambda rngs: Block(config, rngs=rngs), norm, rngs=rngs)
