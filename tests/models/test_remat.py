"""What the backward pass computes again: no number follows from it, only which kernels run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_llava import assert_close

from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.remat import REMAT
from astrollava_jax.params import merge, split
from astrollava_jax.sharding import MeshConfig

ROWS, LENGTH = 2, 128
CONFIG = LlamaConfig(
    vocab_size=8, embed_dim=32, mlp_dim=48, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=16
)


def gradients(remat: str, kernel: str, dtype="float32"):
    """A function of the parameters and the embedded words: a loss and its gradients."""
    graphdef, params = split(CONFIG.build(nnx.Rngs(0)))
    ids = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 1]], (60, 40, 28), axis=1), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)

    def loss(params, x):
        decoder = merge(graphdef, params)
        hidden = decoder(x.astype(dtype), ids, positions, remat=remat, kernel=kernel)
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)) * (jnp.arange(32) - 3.0))

    x = np.random.default_rng(0).normal(size=(ROWS, LENGTH, 32)).astype(np.float32)
    used = {address: x for address, x in params.items() if "layers" in address}
    rest = {address: x for address, x in params.items() if address not in used}

    def of_layers(used, x):
        return jax.value_and_grad(lambda used: loss(used | rest, x))(used)

    return jax.jit(of_layers), (used, jnp.asarray(x))


@functools.cache
def of_keeping_everything():
    function, arguments = gradients("none", "xla")
    return function(*arguments)


@pytest.mark.parametrize(
    ("remat", "kernel"),
    [*((remat, "xla") for remat in REMAT), ("attention", "interpreted"), ("full", "interpreted")],
)
def test_losses_and_gradients_are_those_of_keeping_everything(remat, kernel):
    with jax.default_matmul_precision("highest"):
        loss, expected = of_keeping_everything()
        with jax.set_mesh(MeshConfig(tensor=2).build(jax.devices()[:4])):
            function, arguments = gradients(remat, kernel)
            found, ours = function(*arguments)
    assert_close(found, loss, "loss", 1e-5)
    for address, gradient in expected.items():
        assert_close(ours[address], gradient, address, 1e-5)


@pytest.mark.parametrize(
    ("remat", "runs"),
    [
        *(("none", 1), ("dots_attention", 1), ("attention", 1)),
        *(("dots", 2), ("full", 2), ("offload", 2)),
    ],
)
def test_the_kernel_runs_forward_a_second_time_unless_its_results_are_kept(
    remat, runs, monkeypatch
):
    """In the body of the walk forward and in that of the walk back, for both kernels."""
    function, arguments = gradients(remat, "splash", "bfloat16")
    text = function.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count('kernel_name = "splash_mha_fwd_segmented_residuals"') == runs
    assert text.count('kernel_name = "splash_mha_dq') == 1

    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 1)
    function, arguments = gradients(remat, "cudnn", "bfloat16")
    text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == runs
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
