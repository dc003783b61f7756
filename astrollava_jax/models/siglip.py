"""The vision tower of SigLIP: patches alone, a shift in their map, tanh GELU. arXiv 2303.15343."""

from typing import Any, ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Float, UInt8

from astrollava_jax.config import config
from astrollava_jax.models.attention import Kernel
from astrollava_jax.models.layers import Embedding, LayerNorm, Linear, stack
from astrollava_jax.models.vision import Attention, Block, Channels, Mlp, Tower, TowerConfig

HALF = (0.5, 0.5, 0.5)


@config
class SiglipConfig(TowerConfig):
    """The shape of a SigLIP vision transformer."""

    num_prefix: ClassVar[int] = 0
    type: Literal["siglip"] = "siglip"
    norm_eps: float = 1e-6
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    pixel_mean: Channels = HALF
    pixel_std: Channels = HALF
    pooling: bool = False
    """It comes with the head that pools patches into one vector."""

    def build(self, rngs: nnx.Rngs) -> "Siglip":
        """The tower, with fresh parameters."""
        return Siglip(self, rngs=rngs)


class Pooling(nnx.Module):
    """The head that makes one vector of an image: kept for export, never computed."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        E = config.embed_dim
        self.probe = Embedding(1, E, (None, "embed"), rngs=rngs)
        self.attn = Attention(config, rngs=rngs)
        self.norm = LayerNorm(E, config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)


class Siglip(Tower):
    """Patches, blocks, post-norm.

    LLaVA reads the output of an inner block; what stands behind it is kept for export and never
    computed.
    """

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.config = config
        p, E = config.patch_size, config.embed_dim
        axes = (None, None, None, "embed")
        self.patch_embed = Linear((p, p, 3), (E,), axes, bias=True, rngs=rngs)
        self.positions = Embedding(config.num_patches, E, (None, "embed"), scale=E**-0.5, rngs=rngs)
        self.layers = stack(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        self.post_norm = LayerNorm(E, config.norm_eps)
        self.pooling = Pooling(config, rngs=rngs) if config.pooling else None

    def __call__(
        self, images: UInt8[Array, "M h w 3"], *, layer: int, dtype: Any, kernel: Kernel = "xla"
    ) -> Float[Array, "M P E"]:
        """Hidden states after block `layer`."""
        x = self.patch_embed(self.patches(images, dtype))
        return self.run(x + self.positions.embedding.get_value().astype(dtype), layer, kernel)
