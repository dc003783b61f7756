"""What the backward pass computes again: no number follows from it, only which kernels run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_llava import assert_close

from astrollava_jax.models.gemma2 import Gemma2Config
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.lora import LoraConfig, attach
from astrollava_jax.models.quantize import stores
from astrollava_jax.models.remat import REMAT
from astrollava_jax.params import merge, split
from astrollava_jax.planning.work import executed
from astrollava_jax.sharding import MeshConfig

ROWS, LENGTH = 2, 128
SHAPE: Any = dict(vocab_size=8, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=16)
CONFIG = LlamaConfig(**SHAPE, num_layers=5)


def gradients(
    remat: str, kernel: str, dtype="float32", config: LlamaConfig | Gemma2Config = CONFIG
):
    """A function of the parameters and the embedded words: a loss and its gradients."""
    graphdef, params = split(config.build(nnx.Rngs(0)))
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
def of_keeping_everything(config: LlamaConfig | Gemma2Config = CONFIG):
    function, arguments = gradients("none", "xla", config=config)
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


def test_what_is_kept_by_name_is_known_in_pairs_of_blocks_too():
    config = Gemma2Config(**SHAPE, num_layers=2)
    with jax.default_matmul_precision("highest"):
        loss, expected = of_keeping_everything(config)
        function, arguments = gradients("dots_attention", "xla", config=config)
        found, ours = function(*arguments)
    assert_close(found, loss, "loss", 1e-5)
    for address, gradient in expected.items():
        assert_close(ours[address], gradient, address, 1e-5)


class Model(nnx.Module):
    """As much of a model as has adapters and stored kernels, at their addresses."""

    def __init__(self):
        self.llm = CONFIG.build(nnx.Rngs(0))


def of_adapters(remat: str):
    """The gradients of adapters beside kernels in 8 bits."""
    lora = LoraConfig(rank=4, alpha=4.0, targets=("llm/layers/.*_proj",))
    model = Model()
    forms = stores(model, "int8")
    graphdef, params = split(attach(model, lora, jax.random.key(0)))
    params = {a: x + 0.1 if a.endswith("lora_b") else x for a, x in params.items()}
    frozen = params | {a: how(params[a]) for a, how in forms.items()}
    adapters = {a: frozen.pop(a) for a in params if "lora" in a}
    x, ids = jax.random.normal(jax.random.key(1), (1, 8, 32)), jnp.ones((1, 8), jnp.int32)

    def loss(adapters):
        llm = merge(graphdef, adapters | frozen).llm
        return jnp.mean(jnp.square(llm(x, ids, jnp.arange(8)[None], remat=remat)))

    return jax.jit(jax.grad(loss))(adapters)


def test_adapters_over_stored_kernels_learn_the_same():
    with jax.default_matmul_precision("highest"):
        found, expected = of_adapters("dots_attention"), of_adapters("none")
    for address, gradient in expected.items():
        assert np.abs(gradient).max() > 0
        assert_close(found[address], gradient, address, 1e-5)


def test_products_whose_results_are_kept_by_name_do_not_run_again():
    """Twice the multiply-adds of their kernels, for each position and layer."""

    def flops(remat: str) -> int:
        function, arguments = gradients(remat, "xla")
        return executed(jax.make_jaxpr(function)(*arguments)).flops

    each = 2 * ROWS * LENGTH * CONFIG.num_layers
    gate_and_up, queries_and_output, keys_and_values = 2 * 32 * 48, 2 * 32 * 4 * 16, 2 * 32 * 2 * 16
    most, projections = flops("attention"), queries_and_output + keys_and_values
    assert most - flops("mlp") == each * gate_and_up
    assert most - flops("projections") == each * projections
    assert most - flops("dots_attention") == each * (gate_and_up + projections)


@pytest.mark.parametrize(
    ("remat", "runs"),
    [
        ("none", 1), ("dots_attention", 1), ("mlp", 1), ("projections", 1), ("attention", 1),
        ("dots", 2), ("full", 2), ("offload", 2),
    ],
)  # fmt: skip
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
