"""Projectors: image features into the width of the decoder."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Float

from astrollava_jax.config import config
from astrollava_jax.models.layers import Linear, exact_gelu


@config
class LinearConfig:
    """One linear map: LLaVA 1.0."""

    type: Literal["linear"] = "linear"

    def build(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> "Mlp":
        """The projector, with fresh parameters."""
        return Mlp(1, inputs, outputs, rngs=rngs)


@config
class MlpConfig:
    """Linear maps with GELU between them: LLaVA 1.5 has two (`mlp2x_gelu`)."""

    type: Literal["mlp"] = "mlp"
    depth: int = 2
    """Number of linear maps."""

    def build(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> "Mlp":
        """The projector, with fresh parameters."""
        return Mlp(self.depth, inputs, outputs, rngs=rngs)


@config
class IdentityConfig:
    """Nothing: the tower is as wide as the decoder."""

    type: Literal["identity"] = "identity"

    def build(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> "Mlp":
        """The projector, which has no parameters.

        Raises:
            ValueError: if the widths differ.
        """
        if inputs != outputs:
            raise ValueError(f"identity projector: the tower has width {inputs}, not {outputs}")
        return Mlp(0, inputs, outputs, rngs=rngs)


class Mlp(nnx.Module):
    """`depth` linear maps, exact GELU between them."""

    def __init__(self, depth: int, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.depth = depth
        for index in range(depth):
            width = inputs if index == 0 else outputs
            linear = Linear((width,), (outputs,), ("embed", "projected"), bias=True, rngs=rngs)
            setattr(self, f"layers_{index}", linear)

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... D"]:
        """Features in the decoder's width."""
        for index in range(self.depth):
            x = getattr(self, f"layers_{index}")(x if index == 0 else exact_gelu(x))
        return x
