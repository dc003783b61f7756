"""The vision tower of CLIP: patches, a class token, a norm before the blocks. arXiv 2103.00020."""

import functools
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from astrollava_jax.config import config
from astrollava_jax.models.attention import Kernel
from astrollava_jax.models.layers import Embedding, LayerNorm, Linear, stack
from astrollava_jax.models.vision import Block, Channels, Tower, TowerConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@config
class ClipConfig(TowerConfig):
    """The shape of a CLIP vision transformer."""

    num_prefix: ClassVar[int] = 1
    type: Literal["clip"] = "clip"
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    pixel_mean: Channels = MEAN
    pixel_std: Channels = STD

    def build(self, rngs: nnx.Rngs) -> "Clip":
        """The tower, with fresh parameters."""
        return Clip(self, rngs=rngs)


class Clip(Tower):
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

    def __call__(
        self, images: UInt8[Array, "M h w 3"], *, layer: int, dtype: Any, kernel: Kernel = "xla"
    ) -> Float[Array, "M S E"]:
        """Hidden states after block `layer`, the class token's first."""
        x = self.patch_embed(self.patches(images, dtype))
        token = jnp.broadcast_to(
            self.class_token.embedding.get_value().astype(dtype), (x.shape[0], 1, x.shape[2])
        )
        x = jnp.concatenate([token, x], axis=1)
        x = self.pre_norm(x + self.positions.embedding.get_value().astype(dtype))
        return self.run(x, layer, kernel)
