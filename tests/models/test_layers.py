"""The walk over stacked layers, whatever its backward pass finds; projectors against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_llava import assert_close

from astrollava_jax import compiler
from astrollava_jax.models.layers import Linear, product, stack, walk
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.models.remat import REMAT
from astrollava_jax.params import merge, split

DEPTH, WIDTH = 6, 8
"""More layers than are unrolled."""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def one_by_one(layers, x: jax.Array, used: int) -> jax.Array:
    """The walk, written as a loop."""
    kernel, bias = layers.kernel.get_value(), layers.bias.get_value()
    for number in range(used):
        x = x + jnp.tanh(x @ kernel[number] + bias[number])
    return x


@pytest.mark.parametrize("remat", ["none", *REMAT])
@pytest.mark.parametrize("used", [DEPTH, DEPTH - 1, 1, 0])
def test_a_walk_is_a_loop_over_the_used_layers(remat, used):
    def make(rngs: nnx.Rngs) -> Linear:
        return Linear((WIDTH,), (WIDTH,), (None, None), bias=True, rngs=rngs)

    graphdef, params = split(stack(DEPTH, make, nnx.Rngs(0)))
    x = jnp.asarray(noise(3, WIDTH))

    def walked(params):
        layers = merge(graphdef, params)
        y = walk(layers, x, lambda layer, x: x + jnp.tanh(layer(x)), remat=remat, used=used)
        return jnp.sum(jnp.square(y))

    def expected(params):
        return jnp.sum(jnp.square(one_by_one(merge(graphdef, params), x, used)))

    with jax.default_matmul_precision("highest"):
        found, gradients = jax.jit(jax.value_and_grad(walked))(params)
        loss, true_gradients = jax.value_and_grad(expected)(params)
    assert_close(found, loss, "loss", 1e-5)
    for address, gradient in true_gradients.items():
        assert_close(gradients[address], gradient, address, 1e-5)
        assert not gradients[address][used:].any(), "a layer that is passed over learns nothing"


def test_a_stack_in_bfloat16_is_not_copied_as_float32():
    depth, width = 16, 64

    def make(rngs: nnx.Rngs) -> Linear:
        return Linear((width,), (width,), (None, None), rngs=rngs)

    graphdef, params = split(nnx.eval_shape(lambda: stack(depth, make, nnx.Rngs(0))))
    params = {a: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for a, x in params.items()}
    x = jax.ShapeDtypeStruct((8, width), jnp.bfloat16)

    def walked(params, x):
        return walk(merge(graphdef, params), x, lambda layer, x: x + layer(x))

    def temporary_bytes(options):
        compiled = jax.jit(walked, compiler_options=options).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layer = width * width * 4
    assert temporary_bytes(compiler.options(jax.devices()[0])) < 4 * layer
    copied = temporary_bytes({}) > depth * layer
    assert copied == (jax.__version_info__ < (0, 11, 2)), "XLA has changed: see the options' reason"


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("shape", "num_inputs", "formula"),
    [((3, 6), 1, "BTI,IO->BTO"), ((6, 2, 4), 1, "BTI,INH->BTNH"), ((2, 4, 6), 2, "BTNH,NHO->BTO")],
)
def test_a_product_is_the_same_on_every_platform(shape, num_inputs, formula, platform, monkeypatch):
    monkeypatch.setattr("astrollava_jax.models.layers.platform", lambda: platform)
    kernel = jnp.asarray(noise(*shape))
    x = jnp.asarray(noise(2, 5, *shape[:num_inputs]))

    def squares(multiply):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.square(multiply(x, kernel))), (0, 1))

    with jax.default_matmul_precision("highest"):
        found = squares(lambda x, kernel: product(x, kernel, num_inputs))(x, kernel)
        expected = squares(lambda x, kernel: jnp.einsum(formula, x, kernel))(x, kernel)
    assert_close(found[0], expected[0], "of x", 1e-6)
    assert_close(found[1], expected[1], "of the kernel", 1e-6)


@pytest.mark.parametrize(("platform", "copies"), [("cpu", True), ("tpu", False)])
def test_heads_stay_heads_on_a_tpu(platform, copies):
    """There a reshape that parts or joins the last dims is a copy."""
    device = jax.sharding.AbstractDevice(platform, None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    x, into, out = (jax.ShapeDtypeStruct(s, "float32") for s in ((2, 5, 6), (6, 2, 4), (2, 4, 6)))

    def step(x, into, out):
        return jnp.sum(product(product(x, into, 1), out, 2))

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(jax.grad(step, (0, 1, 2)))(x, into, out)
    assert ("reshape" in str(traced)) == copies


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (IdentityConfig(), []),
        (LinearConfig(), [torch.nn.Linear(8, 12)]),
        (MlpConfig(), [torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 12)]),
        (
            MlpConfig(depth=3),
            [torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 12), torch.nn.GELU(),
             torch.nn.Linear(12, 12)],
        ),
    ],
    ids=["identity", "linear", "mlp2x_gelu", "mlp3x_gelu"],
)  # fmt: skip
def test_a_projector_and_its_gradients_are_those_of_torch(config, theirs):
    reference = torch.nn.Sequential(*theirs)
    graphdef, params = split(config.build(8, 12 if theirs else 8, nnx.Rngs(0)))
    linears = [layer for layer in theirs if isinstance(layer, torch.nn.Linear)]
    pairs = {}
    for number, linear in enumerate(linears):
        pairs[f"layers_{number}/kernel"] = linear.weight
        pairs[f"layers_{number}/bias"] = linear.bias
    numbers = {address: jnp.asarray(tensor.detach().numpy().T) for address, tensor in pairs.items()}
    assert {a: x.shape for a, x in numbers.items()} == {a: x.shape for a, x in params.items()}
    x = noise(5, 8)

    def loss(params, x):
        return jnp.sum(jnp.square(merge(graphdef, params)(x)))

    tensor = torch.tensor(x, requires_grad=True)
    expected = reference(tensor).square().sum()
    expected.backward()
    with jax.default_matmul_precision("highest"):
        found, (gradients, back) = jax.value_and_grad(loss, argnums=(0, 1))(numbers, x)
    assert_close(found, expected.detach().numpy(), "loss")
    assert_close(back, tensor.grad.numpy(), "gradient of the features")
    for address, parameter in pairs.items():
        assert_close(gradients[address], parameter.grad.numpy().T, address)
