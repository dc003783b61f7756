"""Stored forms of a frozen kernel: less memory, and the kernel again at each use.

A form stands where the kernel's array stood. It gives it back by `astype`, which is all that
`read_kernel` asks of an array, and each of its arrays keeps the kernel's leading layers, so that a
scan over layers cuts it as it cuts the kernel. No gradient flows into one.

With `remat: none` the backward pass keeps the kernels that were made of the forms, and nothing is
saved; all others make them again.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Integer

from astrollava_jax.models.layers import linears
from astrollava_jax.sharding import fitting

NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The normal-float levels of arXiv 2305.14314, appendix E, as bitsandbytes has them."""

BLOCK = 64
"""Numbers that share a scale in nf4, where it divides the dim; else what divides both."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Int8:
    """Whole numbers from -127 to 127, with a scale for each output: its largest number / 127."""

    codes: Any
    """int8 [*inputs, *outputs]; as in all trees, also what is traced, or a shape."""
    scales: Any
    """float32 [1, ..., *outputs]"""

    @classmethod
    def of(cls, kernel: Float[Array, "..."], outputs: int) -> "Int8":
        """The form of a kernel whose last `outputs` dims are its outputs."""
        wide = kernel.astype(jnp.float32)
        inputs = tuple(range(wide.ndim - outputs))
        scales = jnp.max(jnp.abs(wide), axis=inputs, keepdims=True) / 127
        codes = jnp.round(wide / jnp.where(scales == 0, 1, scales))
        return cls(codes.astype(jnp.int8), scales)

    def astype(self, dtype: Any) -> Array:
        """The kernel: code x scale."""
        return (self.codes.astype(jnp.float32) * self.scales).astype(dtype)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=["axis"]
)
@dataclasses.dataclass(frozen=True)
class Nf4:
    """One of 16 levels for each number, times the largest number of its block, in float32.

    Blocks lie along the last input dim. A byte holds a code of the first half of its block in the
    upper bits, and below it the code at the same place of the second half: neighbours, which
    bitsandbytes pairs, lie in the same tile of a TPU's memory, and would have to be sorted into one
    another there. The scales are not quantised again (QLoRA's second quantisation saves another
    0.37 bits per number).
    """

    codes: Any
    """uint8 [*inputs, *outputs], the last input dim half as long."""
    scales: Any
    """float32 [*inputs, *outputs], the last input dim being the number of blocks."""
    axis: int
    """Of the last input dim, counted from the end: leading layers come and go."""

    @classmethod
    def of(cls, kernel: Float[Array, "..."], outputs: int) -> "Nf4":
        """The form of a kernel whose last `outputs` dims are its outputs.

        Raises:
            ValueError: if the last input dim is odd.
        """
        axis = -outputs - 1
        size = kernel.shape[axis]
        if size % 2:
            raise ValueError(
                f"nf4 packs inputs in pairs, but a kernel {list(kernel.shape)} has {size} of them: "
                "set precision.frozen to int8"
            )
        blocks = _split(kernel.astype(jnp.float32), axis, math.gcd(BLOCK, size))
        scales = jnp.max(jnp.abs(blocks), axis=axis, keepdims=True)
        unit = blocks / jnp.where(scales == 0, 1, scales)
        between = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
        codes = jnp.zeros(unit.shape, jnp.uint8)
        for middle in between:
            codes += unit > middle
        first, second = jnp.split(codes, 2, axis=axis)
        packed = (first << 4 | second).reshape(_with_size(kernel.shape, axis, size // 2))
        return cls(packed, scales.squeeze(axis), axis)

    def astype(self, dtype: Any) -> Array:
        """The kernel: level x scale."""
        axis, size = self.axis, 2 * self.codes.shape[self.axis]
        packed = _split(self.codes, axis, size // 2 // self.scales.shape[axis])
        at = packed.ndim + axis
        down = jnp.array([4, 0], jnp.uint8).reshape(2, *[1] * -axis)
        codes = jnp.expand_dims(packed, at) >> down & 15
        numbers = (_levels(codes) * jnp.expand_dims(self.scales, (at, at + 1))).astype(dtype)
        # XLA would look through the reshape, and write out each scale as often as it is used.
        numbers = jax.lax.optimization_barrier(numbers)
        return numbers.reshape(_with_size(self.codes.shape, axis, size))


def _levels(codes: Integer[Array, "..."]) -> Float32[Array, "..."]:
    """The level of each code, chosen bit by bit: a TPU has no fast way to look into a table.

    The first choice is between constants: by arithmetic on their bits, for `where` gives them the
    shape of the codes, and a scan that is differentiated makes such arrays before its loop.
    """
    wide = codes.astype(jnp.int32)
    is_odd = -(wide & 1)
    bits = NF4_LEVELS.view(np.int32).tolist()
    chosen = [is_odd & (even ^ odd) ^ even for even, odd in zip(bits[::2], bits[1::2])]
    for bit in (1, 2, 3):
        is_set = (wide >> bit & 1).astype(bool)
        chosen = [jnp.where(is_set, one, zero) for zero, one in zip(chosen[::2], chosen[1::2])]
    return jax.lax.bitcast_convert_type(chosen[0], jnp.float32)


Form = Literal["int8", "nf4"]
FORMS: dict[str, Any] = {"int8": Int8, "nf4": Nf4}
"""By the name that a config gives them."""

Stored = Int8 | Nf4
"""A kernel that is made again, by `astype`, where it is used."""

Store = Callable[[Array], Stored]
"""From a kernel, with its layers, to what stands for it."""


def stores(model: nnx.Module, form: str) -> dict[str, Store]:
    """How each kernel that may be stored is stored, by address: those of the decoder's layers.

    Embedding, head, norms, tower and projector stay as they are, as in QLoRA.
    """
    return {
        f"{address}/kernel": functools.partial(_store, FORMS[form], _outputs(linear))
        for address, linear in linears(model).items()
        if address.startswith("llm/layers/")
    }


def store(how: Store, kernel: jax.Array) -> Stored:
    """The stored form of a kernel on the devices, laid out as it; the kernel is given up."""
    like = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=kernel.sharding)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract(how, like))
    form = jax.block_until_ready(jax.jit(how, out_shardings=places)(kernel))
    kernel.delete()
    return form


def abstract(how: Store, kernel: jax.ShapeDtypeStruct) -> Any:
    """The form's shapes, laid out as the kernel is where its smaller dims allow."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = fitting(kernel.sharding, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, jax.eval_shape(how, kernel))


def _store(form: Any, outputs: int, kernel: Float[Array, "L ..."]) -> Stored:
    """Layer by layer: what a layer is in float32 meanwhile is all that is held besides."""
    return jax.lax.map(functools.partial(form.of, outputs=outputs), kernel)


def _outputs(linear: Any) -> int:
    return len(linear.kernel.get_metadata("axes")) - linear.num_inputs


def _with_size(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """The shape with another size at `axis`, counted from the end."""
    at = len(shape) + axis
    return (*shape[:at], size, *shape[at + 1 :])


def _split(x: Array, axis: int, size: int) -> Array:
    """The dim at `axis` (counted from the end) as two: groups, and `size` in each at `axis`."""
    at = x.ndim + axis
    return x.reshape(*x.shape[:at], -1, size, *x.shape[at + 1 :])
