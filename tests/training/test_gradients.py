"""Gradients in bfloat16 are those in float32, rounded; sums over micro-batches stay float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.params import merge, split
from astrollava_jax.training.gradients import value_and_gradients
from astrollava_jax.training.step import added

CONFIG = LlamaConfig(
    vocab_size=8, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16
)
ROWS, LENGTH = 2, 8


@functools.cache
def model():
    """The parameters as in a LLaVA, and a loss of them and some embedded words."""
    graphdef, shapes = split(nnx.eval_shape(lambda: CONFIG.build(nnx.Rngs(0))))
    ids = jnp.ones((ROWS, LENGTH), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)

    def loss(params, x, remat):
        decoder = merge(graphdef, {a.removeprefix("llm/"): x for a, x in params.items()})
        hidden = decoder(x.astype(jnp.bfloat16), ids, positions, remat=remat)
        return jnp.mean(jnp.square(decoder.logits(hidden).astype(jnp.float32)))

    random = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return jnp.asarray(random.normal(0, scale, shape), jnp.float32)

    params = {f"llm/{a}": normal(*like.shape, scale=0.2) for a, like in shapes.items()}
    return params, loss, normal(3, ROWS, LENGTH, CONFIG.embed_dim)


@functools.cache
def jaxs_own(remat):
    """A loss, and what JAX gives for it."""
    params, loss, x = model()
    of = functools.partial(loss, x=x[0], remat=remat)
    return of, jax.jit(jax.value_and_grad(of))(params)


def close(found, expected, address):
    wide = np.asarray(found, np.float32)
    most = np.abs(expected).max()
    np.testing.assert_allclose(wide, expected, rtol=2**-7, atol=2**-9 * most, err_msg=address)


@pytest.mark.parametrize(
    "remat", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dots", "full"))]
)
def test_kernels_of_layers_have_bfloat16_gradients_and_all_else_has_float32_ones(remat):
    params, (of, (value, expected)) = model()[0], jaxs_own(remat)
    find = jax.jit(value_and_gradients, static_argnums=(0, 2))
    found, ours = find(of, params, jnp.bfloat16)
    np.testing.assert_allclose(found, value, rtol=1e-3)
    assert list(ours) == list(params)
    for address, gradient in ours.items():
        narrow = "/layers/" in address and address.endswith("kernel")
        assert gradient.dtype == (jnp.bfloat16 if narrow else jnp.float32), address
        close(gradient, expected[address], address)
    assert sum(gradient.dtype == jnp.bfloat16 for gradient in ours.values()) == 7


def test_without_a_narrower_dtype_they_are_jaxs_own_to_the_last_bit():
    params, (of, expected) = model()[0], jaxs_own("none")
    found = jax.jit(value_and_gradients, static_argnums=0)(of, params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_micro_batches_are_added_in_float32():
    """A hundred equal ones make a hundred times one, which sums in bfloat16 are far from."""
    params, loss, x = model()
    one = functools.partial(value_and_gradients, loss, params, jnp.bfloat16)
    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    equal = jnp.broadcast_to(x[0], (100, *x[0].shape))
    value, gradients = jax.jit(lambda x: added(lambda x: one(x, "full"), x, zeros))(equal)
    alone, expected = jax.jit(lambda x: one(x, "full"))(x[0])
    np.testing.assert_allclose(value, 100 * alone, rtol=1e-5)
    for address, gradient in gradients.items():
        assert gradient.dtype == jnp.float32
        wide = 100 * np.asarray(expected[address], np.float32)
        most = np.abs(wide).max()
        np.testing.assert_allclose(gradient, wide, rtol=1e-5, atol=1e-5 * most, err_msg=address)
