"""The turn of queries and keys by their positions, on each kind of device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astrollava_jax.models.rotary import rotary_angles, rotate

PLATFORM = "astrollava_jax.models.rotary.platform"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_turn_is_the_same_number_by_number_on_a_tpu(dtype, monkeypatch):
    """And so is its gradient, which is the turn back."""
    random = np.random.default_rng(0)
    x, gradient = (jnp.asarray(random.normal(size=(2, 5, 3, 8)), dtype) for _ in range(2))
    angles = rotary_angles(jnp.asarray(random.integers(0, 9, (2, 5))), 8, 100.0)

    def both(platform: str) -> tuple[jax.Array, jax.Array]:
        monkeypatch.setattr(PLATFORM, lambda: platform)
        turned, back = jax.vjp(lambda x: rotate(x, angles), x)
        return turned, *back(gradient)

    for found, expected in zip(both("tpu"), both("cpu"), strict=True):
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_array_equal(found.astype("float32"), expected.astype("float32"))


def test_pairs_turn_by_their_angle(monkeypatch):
    """As complex numbers: the first half of a head real, the second imaginary."""
    x = np.random.default_rng(0).normal(size=(1, 4, 1, 8)).astype(np.float32)
    cos, sin = angles = rotary_angles(jnp.arange(4)[None], 8, 100.0)
    expected = (x[..., :4] + 1j * x[..., 4:]) * (np.asarray(cos) + 1j * np.asarray(sin))[:, :, None]
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(PLATFORM, lambda platform=platform: platform)
        found = np.asarray(rotate(jnp.asarray(x), angles))
        np.testing.assert_allclose(found[..., :4], expected.real, atol=1e-6)
        np.testing.assert_allclose(found[..., 4:], expected.imag, atol=1e-6)
