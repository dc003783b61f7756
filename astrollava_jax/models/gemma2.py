"""The Gemma-2 decoder: windows in every other block, soft caps, four norms a block.

Source: arXiv 2408.00118; `modeling_gemma2.py` of transformers 5.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from astrollava_jax.config import config
from astrollava_jax.models.decoder import Attend, Attention, Decoder, DecoderConfig, Mlp
from astrollava_jax.models.layers import tanh_gelu
from astrollava_jax.models.rotary import Angles
from astrollava_jax.sharding import shard


@config
class Gemma2Config(DecoderConfig):
    """The shape of a Gemma-2 (2B, 9B, 27B)."""

    type: Literal["gemma2"] = "gemma2"
    window: int | None = 4096
    """Positions that a query of the blocks 0, 2, 4, ... sees, its own included; null for all."""
    query_scale: float = 256.0
    """Scores are divided by its square root."""
    attention_softcap: float | None = 50.0
    """No score of a key passes it."""
    logits_softcap: float | None = 30.0
    """No score of a word passes it."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_layers % 2:
            raise ValueError(f"num_layers {self.num_layers} must be even: its blocks go in pairs")

    @property
    def scores_softcap(self) -> float | None:
        """What no score of attention passes."""
        return self.attention_softcap

    def build(self, rngs: nnx.Rngs) -> "Gemma2":
        """The decoder, with fresh parameters."""
        return Gemma2(self, rngs=rngs)


class CenteredRmsNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) times 1 + scale, all in float32."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.zeros(dim), axes=("embed",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The normed array, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * (1.0 + self.scale.get_value().astype(jnp.float32))).astype(x.dtype)


class Block(nnx.Module):
    """Norm, attention, norm, added; norm, MLP, norm, added."""

    def __init__(self, config: Gemma2Config, window: int | None, *, rngs: nnx.Rngs):
        D, eps = config.embed_dim, config.norm_eps
        self.norm1, self.norm1_after = CenteredRmsNorm(D, eps), CenteredRmsNorm(D, eps)
        cap, scale = config.attention_softcap, config.query_scale**-0.5
        self.attn = Attention(config, window=window, softcap=cap, scale=scale, rngs=rngs)
        self.norm2, self.norm2_after = CenteredRmsNorm(D, eps), CenteredRmsNorm(D, eps)
        self.mlp = Mlp(config, tanh_gelu, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Angles, attend: Attend
    ) -> Float[Array, "B T D"]:
        """The next block's input."""
        x = x + self.norm1_after(self.attn(self.norm1(x), angles, attend))
        x = x + self.norm2_after(self.mlp(self.norm2(x)))
        return shard(x, "batch", "length", None)


class Pair(nnx.Module):
    """A block that looks through a window, and one that sees everything."""

    def __init__(self, config: Gemma2Config, *, rngs: nnx.Rngs):
        self.near = Block(config, config.window, rngs=rngs)
        self.far = Block(config, None, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Angles, attend: Attend
    ) -> Float[Array, "B T D"]:
        """The next pair's input."""
        return self.far(self.near(x, angles, attend), angles, attend)


class Gemma2(Decoder):
    """Words times sqrt(D), pairs of blocks, norm, head with a cap.

    Windows stay static, as attention kernels want them, because a step of the walk is a pair.
    """

    def __init__(self, config: Gemma2Config, *, rngs: nnx.Rngs):
        super().__init__(
            config,
            lambda rngs: Pair(config, rngs=rngs),
            CenteredRmsNorm(config.embed_dim, config.norm_eps),
            num_steps=config.num_layers // 2,
            embed_multiplier=config.embed_dim**0.5,
            rngs=rngs,
        )
        self.logits_softcap = config.logits_softcap

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of every word, in the dtype of `hidden`."""
        scores, cap = super().logits(hidden), self.logits_softcap
        return scores if cap is None else cap * jnp.tanh(scores / cap)
