"""The loss and its gradients; those of the decoder's kernels in the dtype of compute, if wished.

Such a gradient is a product in that dtype. It becomes float32 only because its weight is, and those
of all layers are held until the update: of LLaVA-1.5-7B's, 13 of 27 GB are zeros behind the last
bit of bfloat16.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from astrollava_jax.params import Params

READ_ONCE = re.compile(r"llm/layers/.*kernel")
"""Parameters of which a forward pass reads each number once: their gradients are no sums."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "gradient"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Master:
    """A float32 weight that stands where a kernel does, and what stands for its gradient."""

    weight: Any
    gradient: Any
    """Zeros that nothing reads: to differentiate by them is to differentiate by the weight."""

    def astype(self, dtype: Any) -> Array:
        """The weight, rounded."""
        return _rounded(self.weight, self.gradient).astype(dtype)


@jax.custom_vjp
def _rounded(weight: Array, gradient: Array) -> Array:
    return weight.astype(gradient.dtype)


_rounded.defvjp(
    lambda weight, gradient: (weight.astype(gradient.dtype), None),
    lambda _, received: (None, received),
)


def value_and_gradients(
    loss: Callable[..., Float[Array, ""]],
    trainable: Params,
    narrow: Any | None = None,
    *others: Any,
) -> tuple[Float[Array, ""], Params]:
    """The loss and its gradients, each in the dtype of its parameter.

    Args:
        loss: of the parameters and what else it takes.
        trainable: the parameters.
        narrow: the dtype of compute, in which the decoder's kernels have theirs; None = float32.
        others: what else the loss takes.
    """
    kernels = {a: x for a, x in trainable.items() if narrow is not None and READ_ONCE.fullmatch(a)}
    zeros = {address: jnp.zeros(x.shape, narrow) for address, x in kernels.items()}
    rest = {address: x for address, x in trainable.items() if address not in kernels}

    def of(rest: Params, zeros: Params) -> Float[Array, ""]:
        masters = {address: Master(x, zeros[address]) for address, x in kernels.items()}
        return loss({**rest, **masters}, *others)

    value, (wide, slim) = jax.value_and_grad(of, argnums=(0, 1))(rest, zeros)
    found = {**wide, **slim}
    return value, {address: found[address] for address in trainable}
