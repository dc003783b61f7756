"""Rotary positions: the frequencies of a head's pairs, their angles, and the turn itself."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from pydantic import Field

from astrollava_jax.config import config
from astrollava_jax.sharding import platform

Angles = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]
"""Cosine and sine of each position's angles."""


@config
class LinearScaling:
    """All positions closer together (Vicuna 16k); arXiv 2306.15595."""

    type: Literal["linear"] = "linear"
    factor: float

    def scale(self, frequencies: Float32[np.ndarray, " half"]) -> Float32[np.ndarray, " half"]:
        """The frequencies with which positions beyond the trained ones are told apart."""
        return frequencies / np.float32(self.factor)


@config
class Llama3Scaling:
    """Slow pairs slower, fast ones as they were, a ramp between (Llama 3.1 and 3.2)."""

    type: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float
    """Wavelengths above `original_length / low_freq_factor` are stretched by `factor`."""
    high_freq_factor: float
    """Wavelengths below `original_length / high_freq_factor` stay."""
    original_length: int
    """Positions before the stretch."""

    def __post_init__(self):
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor "
                f"{self.high_freq_factor}"
            )

    def scale(self, frequencies: Float32[np.ndarray, " half"]) -> Float32[np.ndarray, " half"]:
        """The frequencies with which positions beyond the trained ones are told apart."""
        turns = np.float32(self.original_length) * frequencies / np.float32(2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((turns - self.low_freq_factor) / width, 0.0, 1.0)
        return ((1 - kept) * frequencies / self.factor + kept * frequencies).astype(np.float32)


RopeScaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="type")]


def rotary_angles(
    positions: Int[Array, "B T"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> Angles:
    """Cosine and sine of each position's angles, in float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is not None:
        frequencies = scaling.scale(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """Turns the first half of each head against the second (Llama's order, not interleaved)."""
    if platform() == "tpu":
        # A half of 128 numbers fills half of a register there, and is copied to be one: to swap
        # halves by a product takes half of the time (by estimate, all turns of a layer).
        return _by_product(x, angles)
    cos, sin = (part[:, :, None, :] for part in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


@jax.custom_vjp
def _by_product(x: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """The same; each number that is swapped is one product by 1, and so stays what it is."""
    cos, sin = (jnp.concatenate([part, part], axis=-1)[:, :, None, :] for part in angles)
    swap = np.roll(np.eye(x.shape[-1], dtype=np.float32), x.shape[-1] // 2, axis=1)
    swap[x.shape[-1] // 2 :] *= -1
    swapped = jnp.einsum(
        "BTNH,HG->BTNG", x, swap.astype(x.dtype),
        precision="highest", preferred_element_type=jnp.float32,
    )  # fmt: skip
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def _turned(x: Array, angles: Angles) -> tuple[Array, Angles]:
    return _by_product(x, angles), angles


def _turned_back(angles: Angles, gradient: Array) -> tuple[Array, Angles]:
    """What was turned is turned back; positions are whole numbers, their angles learn nothing."""
    cos, sin = angles
    return _by_product(gradient, (cos, -sin)), (jnp.zeros_like(cos), jnp.zeros_like(sin))


_by_product.defvjp(_turned, _turned_back)
