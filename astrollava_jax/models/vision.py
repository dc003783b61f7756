"""What all vision towers share: pixels, patches, blocks that are normed first.

A tower is a file beside this one: a config, and its module. See `clip.py`.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from astrollava_jax.config import config
from astrollava_jax.models.attention import KERNELS, Kernel, attention
from astrollava_jax.models.layers import (
    LayerNorm,
    Linear,
    exact_gelu,
    quick_gelu,
    tanh_gelu,
    walk,
)
from astrollava_jax.sharding import shard

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu, "gelu_pytorch_tanh": tanh_gelu}
"""CLIP's weights were trained with quick GELU, some later copies with the exact one."""

Channels = tuple[float, float, float]


@config
class TowerConfig:
    """The shape that every vision transformer has."""

    num_prefix: ClassVar[int]
    """Features before those of the patches: a class token."""

    image_size: int
    """Side of the square image, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    norm_eps: float
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
    pixel_mean: Channels
    """Subtracted from pixels in [0, 1], per channel."""
    pixel_std: Channels
    """Divides the pixels after that, per channel."""

    def __post_init__(self):
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be at least patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}"
            )

    @property
    def side(self) -> int:
        """Patches along a side; pixels that fill no patch are left out, on the right and below."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return self.side**2


class Attention(nnx.Module):
    """Every patch looks at every patch."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        E, N = config.embed_dim, config.num_heads
        heads, H = ("embed", "heads", "head_dim"), E // N
        self.q_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.k_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.v_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.o_proj = Linear((N, H), (E,), ("heads", "head_dim", "embed"), bias=True, rngs=rngs)

    @jax.named_scope("attn")
    def __call__(self, x: Float[Array, "M P E"], kernel: Kernel = "xla") -> Float[Array, "M P E"]:
        """What each patch learns from the others; by XLA where the kernel cannot do it."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        kernel = kernel if KERNELS[kernel].lacks(q, None) is None else "xla"
        return self.o_proj(attention(q, k, v, causal=False, kernel=kernel))


class Mlp(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        E, F = config.embed_dim, config.mlp_dim
        self.activation = config.activation
        self.up_proj = Linear((E,), (F,), ("embed", "mlp"), bias=True, rngs=rngs)
        self.down_proj = Linear((F,), (E,), ("mlp", "embed"), bias=True, rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "M P E"]) -> Float[Array, "M P E"]:
        """The hidden units, mapped back."""
        return self.down_proj(ACTIVATIONS[self.activation](self.up_proj(x)))


class Block(nnx.Module):
    """One tower layer: norm, attention, norm, MLP, each added to its input."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.embed_dim, config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "M P E"], kernel: Kernel = "xla") -> Float[Array, "M P E"]:
        """The next layer's input."""
        x = x + self.attn(self.norm1(x), kernel)
        x = x + self.mlp(self.norm2(x))
        return shard(x, "batch", None, None)


class Tower(nnx.Module):
    """What every tower does with pixels before its blocks, and the walk through these."""

    config: TowerConfig
    layers: Any

    def patches(self, images: UInt8[Array, "M h w 3"], dtype: Any) -> Float[Array, "M P p p 3"]:
        """The patches row by row, normalised in float32, because uint8 is what travels here."""
        config = self.config
        mean, std = jnp.array(config.pixel_mean), jnp.array(config.pixel_std)
        x = ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)
        side, p = config.side, config.patch_size
        x = x[:, : side * p, : side * p].reshape(-1, side, p, side, p, 3)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, p, p, 3)

    def run(
        self, x: Float[Array, "M S E"], layer: int, kernel: Kernel = "xla"
    ) -> Float[Array, "M S E"]:
        """Hidden states after block `layer`; 0 is before the first, -1 after the last, as in HF."""
        used = layer if layer >= 0 else self.config.num_layers + 1 + layer
        return walk(self.layers, x, lambda block, x: block(x, kernel), used=used)
