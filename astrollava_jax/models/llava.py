"""LLaVA: encode the pictures, project them, place them among the words, decode.

Source: LLaVA 1.5 (arXiv 2310.03744); `llava_arch.py` of haotian-liu/LLaVA, with static shapes.
LLaVA-NeXT, which sees pictures of any resolution, differs here by one vector: all else of it is in
the numbers of `feature_index` (see `data.tiles`).
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from pydantic import Field

from astrollava_jax.batch import NEWLINE, Batch, ImageFacts
from astrollava_jax.config import config
from astrollava_jax.models.attention import Kernel, of_towers
from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.gemma2 import Gemma2Config
from astrollava_jax.models.layers import Embedding, gather_rows
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.phi3 import Phi3Config
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.models.remat import Remat
from astrollava_jax.models.siglip import SiglipConfig
from astrollava_jax.sharding import Axes, shard

Vision = Annotated[ClipConfig | SiglipConfig, Field(discriminator="type")]
Projector = Annotated[LinearConfig | MlpConfig | IdentityConfig, Field(discriminator="type")]
Llm = Annotated[LlamaConfig | Phi3Config | Gemma2Config, Field(discriminator="type")]


@config
class LlavaConfig:
    """A vision tower, a projector and a decoder."""

    vision: Vision
    projector: Projector
    llm: Llm
    select_layer: int = -2
    """Which hidden states of the tower are read: -2 = the output of the last block but one."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """`patch` drops the class token, where there is one."""
    grid: tuple[tuple[int, int], ...] | None = None
    """Canvases (height, width), in pixels, of which tiles are cut: LLaVA-NeXT's
    `image_grid_pinpoints`. None = LLaVA 1.5, where a picture is one square image."""

    def __post_init__(self):
        depth = self.vision.num_layers
        if not -depth - 1 <= self.select_layer <= depth:
            raise ValueError(
                f"select_layer {self.select_layer} is outside the tower's {depth} layers"
            )
        if self.select_feature == "cls_patch" and not self.vision.num_prefix:
            raise ValueError(
                f"select_feature cls_patch: a {self.vision.type} has no class token; say patch"
            )
        if self.grid is not None:
            self._check_grid(self.grid)

    def _check_grid(self, grid: tuple[tuple[int, int], ...]) -> None:
        size, patch = self.vision.image_size, self.vision.patch_size
        wrong = [c for c in grid if not all(side > 0 and side % size == 0 for side in c)]
        if wrong or not grid:
            raise ValueError(
                f"grid: expected canvases (height, width) of multiples of the tower's {size} "
                f"pixels, found {', '.join(map(str, wrong)) or 'none'}"
            )
        if self.select_feature != "patch" or size % patch:
            raise ValueError(
                "a grid lays features out as lines of patches: it needs select_feature patch and "
                f"patches that fill the image, found {self.select_feature} and {patch} in {size}"
            )

    @property
    def image_facts(self) -> ImageFacts:
        """What data must know of the tower."""
        vision = self.vision
        prefix = vision.num_prefix if self.select_feature == "cls_patch" else 0
        return ImageFacts(
            size=vision.image_size,
            patch=vision.patch_size,
            tokens=vision.num_patches + prefix,
            pad_color=tuple(int(255 * mean) for mean in vision.pixel_mean),  # pyright: ignore
            pixel_mean=vision.pixel_mean,
            pixel_std=vision.pixel_std,
            grid=self.grid,
        )

    def build(self, rngs: nnx.Rngs) -> "Llava":
        """The model, with fresh parameters in float32."""
        return Llava(self, rngs=rngs)

    def abstract(self) -> "Llava":
        """The model without its numbers: shapes, addresses, axes."""
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))


class Llava(nnx.Module):
    """The whole model. Its parts are `vision`, `projector` and `llm`.

    With a grid there is a vector besides, `image_newline`: it ends each line of a picture that was
    cut into tiles.
    """

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = config.vision.build(rngs)
        self.projector = config.projector.build(
            config.vision.embed_dim, config.llm.embed_dim, rngs=rngs
        )
        self.llm = config.llm.build(rngs)
        self.image_newline = line_end(config.llm.embed_dim, rngs) if config.grid else None

    def encode(
        self, images: UInt8[Array, "M h w 3"], dtype: Any, kernel: Kernel = "xla"
    ) -> Float[Array, "M P D"]:
        """Image features in the decoder's width; `kernel` computes the tower's attention."""
        layer = self.config.select_layer
        with jax.named_scope("vision"):
            features = self.vision(images, layer=layer, dtype=dtype, kernel=kernel)
        if self.config.select_feature == "patch":
            features = features[:, self.config.vision.num_prefix :]
        with jax.named_scope("projector"):
            return self.projector(features)

    @jax.named_scope("place")
    def place(
        self,
        tokens: Int[Array, "B T"],
        feature_index: Int[Array, "B T"],
        features: Float[Array, "B IP D"],
    ) -> Float[Array, "B T D"]:
        """Embedded words, with image features where `feature_index` says so."""
        words = self.llm.embed(tokens, features.dtype)
        pictures = gather_rows(features, jnp.maximum(feature_index, 0))
        placed = jnp.where((feature_index >= 0)[..., None], pictures, words)
        if self.image_newline is None:
            return placed
        newline = self.image_newline(jnp.zeros((), jnp.int32), features.dtype)
        return jnp.where((feature_index == NEWLINE)[..., None], newline, placed)

    def __call__(
        self, batch: Batch, *, dtype: Any, remat: Remat = "none", kernel: Kernel = "xla"
    ) -> Float[Array, "B T D"]:
        """The last hidden states of a batch, computed in `dtype`.

        The tower's attention is XLA's or, beside cuDNN's, its own: some 576 patches and no mask.
        """
        rows, per_row = batch.images.shape[:2]
        images = batch.images.reshape(rows * per_row, *batch.images.shape[2:])
        images = shard(images, "batch", None, None, None)
        features = self.encode(images, dtype, of_towers(kernel))
        features = features.reshape(rows, per_row * features.shape[1], features.shape[2])
        x = self.place(batch.tokens, batch.feature_index, features)
        x = shard(x, "batch", "length", None)
        return self.llm(
            x, batch.segment_ids, batch.positions, batch.lengths, remat=remat, kernel=kernel
        )

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of every word."""
        return self.llm.logits(hidden)


def line_end(dim: int, rngs: nnx.Rngs) -> Embedding:
    """The vector that ends each line of a picture, as LLaVA-NeXT begins it."""
    return Embedding(1, dim, (None, "embed"), scale=dim**-0.5, rngs=rngs)


def logical_axes(model: nnx.Module) -> dict[str, Axes]:
    """The logical axes of every parameter, by address; stacked ones begin with `layers`."""
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        axes = variable.get_metadata("axes")
        stacked = len(jax.tree.leaves(variable)[0].shape) - len(axes)
        found["/".join(map(str, path))] = ("layers",) * stacked + axes
    return found
