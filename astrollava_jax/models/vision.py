"""The vision tower of CLIP: patches, a class token, pre-normed blocks."""

import functools
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from astrollava_jax.config import config
from astrollava_jax.models.attention import attention
from astrollava_jax.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    exact_gelu,
    quick_gelu,
    stack,
    walk,
)
from astrollava_jax.sharding import shard

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}
"""CLIP's weights were trained with quick GELU, some later copies with the exact one."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@config
class ClipConfig:
    """The shape of a CLIP vision transformer."""

    type: Literal["clip"] = "clip"
    image_size: int
    """Side of the square image, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from pixels in [0, 1], per channel."""
    pixel_std: tuple[float, float, float] = CLIP_STD
    """Divides the pixels after that, per channel."""

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}"
            )

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return (self.image_size // self.patch_size) ** 2

    def build(self, rngs: nnx.Rngs) -> "Clip":
        """The tower, with fresh parameters."""
        return Clip(self, rngs=rngs)


class Attention(nnx.Module):
    """Every patch looks at every patch."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        E, N = config.embed_dim, config.num_heads
        heads, H = ("embed", "heads", "head_dim"), E // N
        self.q_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.k_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.v_proj = Linear((E,), (N, H), heads, bias=True, rngs=rngs)
        self.o_proj = Linear((N, H), (E,), ("heads", "head_dim", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "M P E"]) -> Float[Array, "M P E"]:
        """What each patch learns from the others."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(attention(q, k, v, causal=False))


class Mlp(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        E, F = config.embed_dim, config.mlp_dim
        self.activation = config.activation
        self.up_proj = Linear((E,), (F,), ("embed", "mlp"), bias=True, rngs=rngs)
        self.down_proj = Linear((F,), (E,), ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "M P E"]) -> Float[Array, "M P E"]:
        """The hidden units, mapped back."""
        return self.down_proj(ACTIVATIONS[self.activation](self.up_proj(x)))


class Block(nnx.Module):
    """One tower layer: norm, attention, norm, MLP, each added to its input."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.embed_dim, config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "M P E"]) -> Float[Array, "M P E"]:
        """The next layer's input."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return shard(x, "batch", None, None)


class Clip(nnx.Module):
    """Patches and a class token, pre-norm, blocks, post-norm.

    LLaVA reads the output of an inner block; the blocks behind it and `post_norm` are kept for
    export and never computed.
    """

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        p, E = config.patch_size, config.embed_dim
        self.patch_embed = Linear((p, p, 3), (E,), (None, None, None, "embed"), rngs=rngs)
        # As CLIP began: places must be heard beside patches whose numbers are near 1.
        table = functools.partial(Embedding, axes=(None, "embed"), scale=E**-0.5, rngs=rngs)
        self.class_token = table(1, E)
        self.positions = table(config.num_patches + 1, E)
        self.pre_norm = LayerNorm(E, config.norm_eps)
        self.layers = stack(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        self.post_norm = LayerNorm(E, config.norm_eps)

    def pixels(self, images: UInt8[Array, "M h w 3"], dtype: Any) -> Float[Array, "M h w 3"]:
        """Normalised pixels: computed in float32, because uint8 is what travels to the device."""
        mean, std = jnp.array(self.config.pixel_mean), jnp.array(self.config.pixel_std)
        return ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)

    def __call__(
        self, images: UInt8[Array, "M h w 3"], *, layer: int, dtype: Any
    ) -> Float[Array, "M S E"]:
        """Hidden states after block `layer`; 0 is before the first, -1 after the last, as in HF."""
        config = self.config
        side, p = config.image_size // config.patch_size, config.patch_size
        x = self.pixels(images, dtype)
        x = x.reshape(-1, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)  # M row column p q c
        x = self.patch_embed(x.reshape(-1, side * side, p, p, 3))
        token = jnp.broadcast_to(
            self.class_token.embedding.get_value().astype(dtype), (x.shape[0], 1, x.shape[2])
        )
        x = jnp.concatenate([token, x], axis=1)
        x = self.pre_norm(x + self.positions.embedding.get_value().astype(dtype))
        used = layer if layer >= 0 else config.num_layers + 1 + layer
        return walk(self.layers, x, lambda block, x: block(x), used=used)
