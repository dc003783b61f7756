"""Stored kernels: hand-computed codes, bounds of the error, and their life in a scanned model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm
from tiny_llava import assert_close

from astrollava_jax.models.layers import Linear, stack, walk
from astrollava_jax.models.lora import LoraConfig, attach
from astrollava_jax.models.quantize import FORMS, NF4_LEVELS, Int8, Nf4, abstract, store, stores
from astrollava_jax.params import merge, split
from astrollava_jax.sharding import MeshConfig, named

DEPTH, WIDTH = 6, 128


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_int8_by_hand():
    """A scale for each output: 127 and 0.5 are the largest; the third output is all zeros."""
    kernel = jnp.array([[127.0, -0.5, 0.0], [-3.4, 0.1, 0.0]])
    form = Int8.of(kernel, outputs=1)
    assert form.codes.tolist() == [[127, -127, 0], [-3, 25, 0]]  # 0.1 / 0.5 x 127 = 25.4
    np.testing.assert_allclose(form.scales, [[1.0, 0.5 / 127, 0.0]], rtol=1e-6)
    expected = [[127, -0.5, 0], [-3, 25 * 0.5 / 127, 0]]
    np.testing.assert_allclose(form.astype(jnp.float32), expected, rtol=1e-6)


def test_int8_of_several_inputs_has_one_scale_for_each_output():
    form = Int8.of(jnp.asarray(noise(4, 6, 5)), outputs=1)
    assert form.scales.shape == (1, 1, 5)
    expected = np.abs(noise(4, 6, 5)).max((0, 1)) / 127
    np.testing.assert_allclose(form.scales[0, 0], expected, rtol=1e-6)


def test_nf4_by_hand():
    """Four inputs are one block; its largest number, -4, is the unit; two codes in a byte."""
    kernel = jnp.array([[2.0], [-1.0], [0.1], [-4.0]])
    form = Nf4.of(kernel, outputs=1)
    # In units of 4: 0.5, -0.25, 0.025, -1. Levels nearest: 0.4407 (12), -0.2844 (4), 0 (7), -1 (0)
    assert form.scales.tolist() == [[4.0]]
    # Of both halves of the block, those at the same place share a byte.
    assert form.codes.tolist() == [[12 * 16 + 7], [4 * 16 + 0]]
    expected = 4 * NF4_LEVELS[[12, 4, 7, 0]]
    np.testing.assert_allclose(form.astype(jnp.float32)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("outputs", [1, 2])
def test_every_byte_of_nf4_gives_its_two_levels_times_their_scale_to_the_last_bit(dtype, outputs):
    """A column holds all 256 bytes, in 8 blocks of 64 numbers."""
    codes = np.broadcast_to(
        np.arange(256, dtype=np.uint8).reshape(256, *[1] * outputs), (256, *[3] * outputs)
    )
    scales = np.abs(noise(8, *[3] * outputs))
    form = Nf4(jnp.asarray(codes), jnp.asarray(scales), -outputs - 1)
    blocks = codes.reshape(8, 32, *[3] * outputs)
    both = np.concatenate([NF4_LEVELS[blocks >> 4], NF4_LEVELS[blocks & 15]], axis=1)
    expected = (both * scales[:, None]).astype(dtype).reshape(512, *[3] * outputs)
    found = np.asarray(jax.jit(lambda form: form.astype(dtype))(form))
    assert found.dtype == expected.dtype
    assert np.array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_the_levels_are_the_quantiles_of_the_paper():
    """QLoRA, section 3: eight and seven quantiles of each half of a normal, and an exact zero."""
    offset = 1 - 1 / 2 * (1 / 32 + 1 / 30)  # 0.9677083, as bitsandbytes computes them
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(NF4_LEVELS, levels / np.abs(levels).max(), atol=2e-7)


@pytest.mark.parametrize(
    ("shape", "outputs", "block"),
    [((256, 8), 1, 64), ((4, 12, 5), 1, 4), ((80, 2, 6), 2, 16), ((6, 4), 1, 2)],
)
def test_a_block_is_what_64_and_the_last_input_share(shape, outputs, block):
    kernel = noise(*shape)
    form = Nf4.of(jnp.asarray(kernel), outputs)
    inputs = kernel.ndim - outputs
    blocks = kernel.reshape(*shape[: inputs - 1], -1, block, *shape[inputs:])
    largest = np.abs(blocks).max(inputs)
    assert np.array_equal(form.scales, largest)
    error = np.abs(np.asarray(form.astype(jnp.float32)) - kernel).reshape(blocks.shape)
    # At most half of the widest gap between levels, 0.3038.
    widest = np.diff(NF4_LEVELS).max() / 2
    assert (error <= widest * np.expand_dims(largest, inputs) * (1 + 1e-6)).all()


def test_stored_numbers_are_stored_as_themselves():
    """What a form gives back has the same form."""
    for form in FORMS.values():
        once = form.of(jnp.asarray(noise(64, 5)), outputs=1)
        again = form.of(once.astype(jnp.float32), outputs=1)
        assert np.array_equal(once.codes, again.codes)


def test_an_odd_number_of_inputs_is_told():
    with pytest.raises(ValueError, match=r"kernel \[7, 4\] has 7.*precision.frozen to int8"):
        Nf4.of(jnp.ones((7, 4)), outputs=1)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.proj = Linear((2, WIDTH // 2), (WIDTH,), ("heads", None, "embed"), rngs=rngs)


class Decoder(nnx.Module):
    def __init__(self):
        self.layers = stack(DEPTH, Block, nnx.Rngs(0))


class Model(nnx.Module):
    """As much of a model as has kernels to be stored, at their addresses."""

    def __init__(self):
        self.llm = Decoder()


KERNEL, LORA_B = "llm/layers/proj/kernel", "llm/layers/proj/lora_b"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_stored_kernel_gives_what_its_numbers_give_and_so_do_gradients(form, remat):
    """In jit, scan and remat, loss and gradient of the adapters through the stored base."""
    config = LoraConfig(rank=4, alpha=4.0, targets=("llm/layers/proj",))
    graphdef, params = split(attach(Model(), config, jax.random.key(0)))
    params[LORA_B] = jnp.asarray(noise(DEPTH, 4, WIDTH))
    stored = jax.jit(stores(Model(), form)[KERNEL])(params[KERNEL])
    given_back = jax.vmap(lambda layer: layer.astype(jnp.float32))(stored)
    x = jnp.asarray(noise(3, WIDTH))

    def loss(adapters, kernel):
        model = merge(graphdef, {**adapters, KERNEL: kernel})

        def apply(layer, x):
            return jnp.tanh(layer.proj(x.reshape(3, 2, WIDTH // 2)))

        return jnp.sum(jnp.square(walk(model.llm.layers, x, apply, remat=remat)))

    adapters = {a: x for a, x in params.items() if a != KERNEL}
    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.value_and_grad(loss))(adapters, stored)
        expected = jax.jit(jax.value_and_grad(loss))(adapters, given_back)
    assert_close(found[0], expected[0], "loss", 1e-6)
    for address, gradient in expected[1].items():
        assert np.abs(gradient).max() > 0
        assert_close(found[1][address], gradient, address, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_as_large_as_a_kernel_is_made_before_the_loop_over_layers(form):
    """Scan does before its loop what owes nothing to a layer, such as a constant in all places."""
    config = LoraConfig(rank=4, alpha=4.0, targets=("llm/layers/proj",))
    graphdef, params = split(attach(Model(), config, jax.random.key(0)))
    kernel = params.pop(KERNEL)
    stored = jax.eval_shape(stores(Model(), form)[KERNEL], kernel)

    def loss(adapters, kernel, x):
        layers = merge(graphdef, {**adapters, KERNEL: kernel}).llm.layers

        def apply(layer, x):
            return layer.proj(x.reshape(3, 2, WIDTH // 2))

        return jnp.sum(walk(layers, x, apply, remat="full"))

    program = jax.make_jaxpr(jax.grad(loss))(params, stored, jnp.ones((3, WIDTH)))
    names = [equation.primitive.name for equation in program.eqns]
    assert names.count("scan") == 2, "forward and backward"
    before = [equation for equation in program.eqns if equation.primitive.name != "scan"]
    largest = max(made.aval.size for equation in before for made in equation.outvars)
    assert largest < kernel.size // DEPTH


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_kernel_lies_where_the_kernel_lay(form):
    mesh = MeshConfig(fsdp=4, tensor=2).build()
    sharding = named(("layers", "heads", None, "embed"), mesh)
    kernel = jax.device_put(noise(DEPTH, 2, WIDTH // 2, WIDTH), sharding)
    how = stores(Model(), form)[KERNEL]
    like = abstract(how, jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=sharding))
    found = store(how, kernel)
    assert kernel.is_deleted(), "one copy is enough"
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)
    assert found.codes.sharding.is_equivalent_to(sharding, 4)
    local = found.codes.sharding.shard_shape(found.codes.shape)
    assert math.prod(local) * 8 == found.codes.size
    # Scales of int8 have one input, which two devices cannot share.
    heads = {"int8": None, "nf4": "tensor"}[form]
    assert found.scales.sharding.spec[1] in (heads, (heads,))
