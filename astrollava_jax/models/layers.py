"""Linear maps, norms, embeddings, activations, and the walk over stacked layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Shaped

from astrollava_jax.models import dropout
from astrollava_jax.models.remat import LAYER_INPUT, REMAT, Remat
from astrollava_jax.sharding import platform, shard

SHORT = 4
"""Stacks up to this depth are unrolled: the loop itself costs a fifth of so small a step."""

Carry = TypeVar("Carry")


def read_kernel(kernel: nnx.Variable, dtype: Any) -> Array:
    """The only way in which a matmul kernel is read.

    A stored form (`models.quantize`) may lie in its place: all that it must have is `astype`.
    """
    return kernel.get_value().astype(dtype)


def product(
    x: Float[Array, "..."], kernel: Float[Array, "..."], num_inputs: int
) -> Float[Array, "..."]:
    """The last `num_inputs` dims of `x` contracted with the first of the kernel."""
    if platform() == "tpu":
        # Heads lie there in tiles of positions by width: as one dim with their width, they would be
        # copied before and after every product (a tenth of a step of stage 2, by estimate).
        return jnp.tensordot(x, kernel, num_inputs)
    # As matrices: a contraction over several dims is a fifth slower on a CPU.
    inputs, outputs = kernel.shape[:num_inputs], kernel.shape[num_inputs:]
    matrix = kernel.reshape(math.prod(inputs), math.prod(outputs))
    y = x.reshape(-1, matrix.shape[0]) @ matrix
    return y.reshape(*x.shape[: x.ndim - num_inputs], *outputs)


class Linear(nnx.Module):
    """Contracts the last `len(inputs)` dims with a kernel of shape `[*inputs, *outputs]`.

    Fresh numbers are uniform within 1 / sqrt(inputs), the bias too: `torch.nn.Linear`'s, and so
    those of LLaVA's fresh projector. An adapter (`models.lora`) may be put beside the kernel.
    """

    lora_a: nnx.Param
    lora_b: nnx.Param

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        axes: Sequence[str | None],
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.num_inputs = len(inputs)
        bound = 1.0 / math.sqrt(math.prod(inputs))

        def fresh(*shape: int) -> Array:
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        self.kernel = nnx.Param(fresh(*inputs, *outputs), axes=tuple(axes))
        self.bias = nnx.Param(fresh(*outputs), axes=tuple(axes[len(inputs) :])) if bias else None
        self.adapter: Any = None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The mapped array, in the dtype of `x`."""
        kernel = read_kernel(self.kernel, x.dtype)
        y = product(x, kernel, self.num_inputs)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(x.dtype)
        return y if self.adapter is None else y + self.adapter(x, self.lora_a, self.lora_b)


def linears(model: nnx.Module) -> dict[str, Linear]:
    """Every linear map of a model, by its address."""
    return {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_graph(model)
        if isinstance(module, Linear)
    }


class Embedding(nnx.Module):
    """A table of vectors, normal with deviation `scale` when fresh; what it gives is multiplied."""

    def __init__(
        self,
        size: int,
        dim: int,
        axes: Sequence[str | None],
        *,
        scale: float = 0.02,
        multiplier: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.rows_axis = axes[0]
        self.multiplier = multiplier
        self.embedding = nnx.Param(
            scale * jax.random.normal(rngs.params(), (size, dim)), axes=tuple(axes)
        )

    def __call__(self, ids: Int[Array, "..."], dtype: Any) -> Float[Array, "... D"]:
        """The vectors of some ids; an id outside the table gives the last one.

        The image token and a pad may lie outside: an image's features take the place of the first,
        and nothing looks at the second. The default of `take` would put NaN there.
        """
        # Whole vectors, as every weight is gathered before its use: from slices of vectors XLA
        # finds no way to rows of a batch but to give every device all of both.
        table = shard(self.embedding.get_value(), self.rows_axis, None)
        vectors = jnp.take(table, ids, axis=0, mode="clip").astype(dtype)
        if self.multiplier is None:
            return vectors
        return vectors * jnp.asarray(self.multiplier, dtype)


class RmsNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps), computed in float32, then scaled."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim), axes=("embed",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The normed array, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale.get_value().astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean 0 and variance 1, computed in float32, then scaled and shifted."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(dim), axes=("embed",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The normed array, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale, bias = self.scale.get_value(), self.bias.get_value()
        return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def gather_rows(table: Float[Array, "B S D"], index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Row `index[b, t]` of `table[b]`; whole rows, because single numbers are slow to scatter."""
    return jax.vmap(lambda rows, places: rows.at[places].get(mode="clip"))(table, index)


def stack(num_layers: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> Any:
    """`num_layers` modules as one, each parameter with a leading layer axis."""

    @nnx.split_rngs(splits=num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_all(rngs: nnx.Rngs):
        return make(rngs)

    return make_all(rngs)


def walk(
    layers: nnx.Module,
    carry: Carry,
    apply: Callable[[Any, Carry], Carry],
    *,
    remat: Remat = "none",
    used: int | None = None,
) -> Carry:
    """Applies stacked layers in order, compiled once for any depth.

    Layers from `used` on are passed over by counting to `used` only: a slice of the stack would be
    a copy of it, and a condition inside the scan keeps what both of its branches need.
    """
    graphdef, state = nnx.split(layers)
    depth = jax.tree.leaves(state)[0].shape[0]

    @jax.named_scope("layers")
    def one(carry: Carry, item: tuple[Any, Int[Array, ""] | None]) -> tuple[Carry, None]:
        layer, number = item
        carry = jax.tree.map(lambda x: checkpoint_name(x, LAYER_INPUT), carry)
        with dropout.in_layer(number):
            return apply(nnx.merge(graphdef, layer), carry), None

    def numbered(carry: Carry, index: Int[Array, ""]) -> tuple[Carry, None]:
        layer = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, False), state)
        return one(carry, (layer, index))

    whole = used is None or used == depth
    body: Any = one if whole else numbered
    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    steps = depth if used is None else used
    numbers = jnp.arange(steps) if dropout.active() or not whole else None
    return jax.lax.scan(body, carry, (state, numbers) if whole else numbers, unroll=steps <= SHORT)[
        0
    ]


def quick_gelu(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """CLIP's activation, x * sigmoid(1.702 x). Exact GELU in its place shifts every feature."""
    return x * jax.nn.sigmoid(1.702 * x)


def tanh_gelu(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """GELU by a hyperbolic tangent, as SigLIP and Gemma were trained with."""
    return jax.nn.gelu(x, approximate=True)


def exact_gelu(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """GELU by the error function, as in LLaVA's projector."""
    return jax.nn.gelu(x, approximate=False)
