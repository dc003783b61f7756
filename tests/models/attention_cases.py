"""What all tests of attention's kernels share: rows of samples, numbers, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_llava import assert_close

from astrollava_jax.models.attention import attention, native

ROWS, LENGTH = 4, 256
"""Two tiles of 128 a side, or one of 256."""

CASES = {
    "causal": {},
    "causal, a window over tiles": {"window": 150},
    "causal, a small window": {"window": 3},
    "a soft cap": {"softcap": 2.0},
    "a scale of its own": {"scale": 0.5},
    "a window and a cap": {"window": 100, "softcap": 3.0, "scale": 1.0},
    "both ways": {"causal": False},
    "both ways, a window": {"causal": False, "window": 40},
}


SAMPLES = [(100, 28, 60), (130, 126), (256,), ()]
"""Rows as the packing makes them: several samples and padding, one sample, nothing."""


def sample_lengths() -> jax.Array:
    return jnp.array([np.pad(row, (0, 3 - len(row))) for row in SAMPLES], jnp.int32)


def segment_ids() -> np.ndarray:
    ids = np.zeros((ROWS, LENGTH), np.int32)
    for row, lengths in enumerate(SAMPLES):
        ids[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return ids


def noise(heads: int, seed: int, head_dim: int = 16) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(ROWS, LENGTH, heads, head_dim)), jnp.float32)


def with_gradients(kernel: str, ids, weights, **how):
    """A jitted function of q, k and v that gives the result and the gradients of a sum of it."""

    def total(q, k, v):
        found = attention(q, k, v, ids, kernel=kernel, **how)  # pyright: ignore
        return jnp.sum(found * weights), found

    def both(q, k, v):
        (_, found), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return found, *gradients

    return jax.jit(both)


def compared_on_its_device(kernel: str, own: str, kv_heads: int = 2, **how) -> None:
    """A kernel in bfloat16 against the einsum in float32, of the same numbers."""
    if native(jax.devices()[0]) != own:
        pytest.skip(f"{own} is not made for {jax.devices()[0].device_kind}")
    heads = (4, kv_heads, kv_heads)
    arrays = [noise(count, seed, 64).astype(jnp.bfloat16) for seed, count in enumerate(heads)]
    ids, weights = jnp.asarray(segment_ids()), noise(4, 3, 64)
    with jax.default_matmul_precision("highest"):
        wide = [array.astype(jnp.float32) for array in arrays]
        expected = with_gradients("xla", ids, weights, **how)(*wide)
    found = with_gradients(kernel, ids, weights, lengths=sample_lengths(), **how)(*arrays)
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours.astype(jnp.float32), theirs, what, 2e-2)
