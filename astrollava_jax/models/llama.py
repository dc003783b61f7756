"""The Llama decoder: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from astrollava_jax.config import config
from astrollava_jax.models.decoder import Attend, Attention, Decoder, DecoderConfig, Mlp
from astrollava_jax.models.layers import RmsNorm
from astrollava_jax.models.rotary import Angles
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


class Block(nnx.Module):
    """One decoder layer: norm, attention, norm, MLP, each added to its input."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.norm1 = RmsNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config, bias=config.qkv_bias, window=config.window, rngs=rngs)
        self.norm2 = RmsNorm(config.embed_dim, config.norm_eps)
        self.mlp = Mlp(config, jax.nn.silu, rngs=rngs)

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
