"""Adapters by address: which maps get one, what it adds, and what dropout drops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
from flax import nnx
from tiny_llava import assert_close

from astrollava_jax.models import dropout
from astrollava_jax.models.layers import Linear, stack, walk
from astrollava_jax.models.llava import logical_axes
from astrollava_jax.models.lora import LoraConfig, attach
from astrollava_jax.params import merge, split

DEPTH, WIDTH = 6, 8
"""More layers than are unrolled."""

DECODER = LoraConfig(rank=3, alpha=6.0, targets=("llm/layers/.*_proj",))
ALONE = LoraConfig(rank=4, alpha=2.0, targets=("",))
"""For a model that is one linear map: its address is empty."""

KEY = jax.random.key(0)


def llava(config: LoraConfig) -> nnx.Module:
    return nnx.eval_shape(lambda: attach(tiny_llava.our_config().build(nnx.Rngs(0)), config, KEY))


def test_every_target_has_an_adapter_with_the_axes_of_its_kernel():
    model = llava(DECODER)
    axes, shapes = logical_axes(model), split(model)[1]
    adapters = {a: (shapes[a].shape, axes[a]) for a in shapes if "lora_" in a}
    assert len(adapters) == 2 * 7
    assert adapters["llm/layers/attn/o_proj/lora_a"] == (
        (2, 4, 12, 3), ("layers", "heads", "head_dim", None)
    )  # fmt: skip
    assert adapters["llm/layers/attn/q_proj/lora_b"] == (
        (2, 3, 4, 12), ("layers", None, "heads", "head_dim")
    )  # fmt: skip
    assert adapters["llm/layers/mlp/down_proj/lora_a"] == ((2, 80, 3), ("layers", "mlp", None))


def test_a_map_outside_a_stack_has_an_adapter_without_layers():
    shapes = split(llava(LoraConfig(rank=3, alpha=6.0, targets=("projector/layers_0",))))[1]
    adapters = {a: x.shape for a, x in shapes.items() if "lora_" in a}
    assert adapters == {"projector/layers_0/lora_a": (32, 3), "projector/layers_0/lora_b": (3, 48)}


def test_a_pattern_that_matches_no_map_is_told_with_those_there_are():
    with pytest.raises(ValueError) as error:
        llava(LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "llm/layers/0/.*", "llm/lm_head")))
    told = str(error.value)
    for pattern in ("q_proj", "llm/layers/0/.*", "llm/lm_head"):
        assert f"{pattern!r}: matches no linear map" in told
    assert (
        "has no layer number" in told and "llm/layers/attn/q_proj, llm/layers/attn/v_proj" in told
    )


def test_the_head_takes_none_and_says_why():
    with pytest.raises(ValueError, match="llm/lm_head takes no adapter: its scores are made in"):
        llava(LoraConfig(rank=3, alpha=6.0, targets=("llm/lm_head",)))


def test_a_rank_larger_than_a_map_is_refused():
    """Keys and values have two heads of 12; the projector begins at 32."""
    with pytest.raises(ValueError) as error:
        llava(LoraConfig(rank=40, alpha=6.0, targets=("projector/.*", "llm/layers/.*_proj")))
    head, *maps = str(error.value).splitlines()
    assert head.startswith("lora.rank is 40, more than the smaller side of these maps: choose 24 ")
    sides = {"llm/layers/attn/k_proj": "48 x 24", "llm/layers/attn/v_proj": "48 x 24",
             "projector/layers_0": "32 x 48"}  # fmt: skip
    assert maps == [f"  {address}: {shape}" for address, shape in sides.items()]
    llava(LoraConfig(rank=24, alpha=6.0, targets=("llm/layers/.*_proj",)))


def test_fresh_adapters_add_nothing_and_are_uniform_within_their_bound():
    model = attach(Linear((400,), (30,), (None, None), rngs=nnx.Rngs(0)), ALONE, KEY)
    a, b = model.lora_a.get_value(), model.lora_b.get_value()
    bound = 1 / np.sqrt(400)  # kaiming_uniform_(a=sqrt(5)) of PEFT comes to this
    assert np.abs(a).max() <= bound and np.std(a) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not b.any()


def test_a_map_adds_the_product_of_its_adapter_times_alpha_over_rank():
    linear = attach(Linear((2, 3), (4,), (None,) * 3, rngs=nnx.Rngs(0)), ALONE, KEY)
    x, b = noise(5, 2, 3), noise(4, 4)
    linear.lora_b.set_value(jnp.asarray(b))
    kernel = np.asarray(linear.kernel.get_value()).reshape(6, 4)
    a = np.asarray(linear.lora_a.get_value()).reshape(6, 4)
    expected = x.reshape(5, 6) @ (kernel + 2 / 4 * a @ b)
    assert_close(linear(jnp.asarray(x)), expected, "y", 1e-5)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    ones = jnp.ones((8, 50_000))
    with dropout.masks(one_draw(rows=8)):
        found = np.asarray(dropout.drop(ones, 0.05, "x"))
    dropped = (found == 0).mean(axis=1)
    # 0.05 within five deviations of the mean of 50,000 draws
    np.testing.assert_allclose(dropped, 0.05, atol=5 * np.sqrt(0.05 * 0.95 / 50_000))
    np.testing.assert_allclose(found[found != 0], 1 / 0.95, rtol=1e-6)


def one_draw(rows: int, seed: int = 0, update: int = 0, micro_batches: int = 1) -> dropout.Draw:
    draws = dropout.draws(seed, jnp.int32(update), micro_batches, rows)
    return jax.tree.map(lambda x: x[-1], draws)


def mask(address: str = "x", layer: int | None = 0, **draw: int) -> np.ndarray:
    number = None if layer is None else jnp.int32(layer)
    with dropout.masks(one_draw(rows=4, **draw)), dropout.in_layer(number):
        return np.asarray(dropout.drop(jnp.ones((4, 1000)), 0.5, address)) > 0


def test_masks_are_independent_in_everything_and_the_same_when_done_again():
    masks = [
        mask(),
        mask("y"),
        mask(layer=1),
        mask(layer=None),
        mask(seed=1),
        mask(update=1),
        mask(micro_batches=2),
    ]
    assert np.array_equal(mask(), masks[0])
    flat = np.concatenate([m.reshape(-1, 1000) for m in masks])  # rows of a mask too
    agreement = (flat[:, None] == flat[None]).mean(-1) - np.eye(len(flat))
    assert np.abs(agreement - 0.5 + 0.5 * np.eye(len(flat))).max() < 0.1


def test_masks_do_not_hang_on_micro_batches():
    draws = dropout.draws(0, jnp.int32(7), 2, 2)
    parts = []
    for number in range(2):
        with dropout.masks(dropout.Draw(draws.key[number], draws.rows[number])):
            parts.append(dropout.drop(jnp.ones((2, 100)), 0.5, "x"))
    with dropout.masks(one_draw(rows=4, update=7)):
        whole = dropout.drop(jnp.ones((4, 100)), 0.5, "x")
    assert np.array_equal(np.concatenate(parts), whole)


def test_nothing_is_dropped_outside_a_training_step():
    assert not dropout.active()
    x = jnp.asarray(noise(4, 10))
    assert dropout.drop(x, 0.5, "x") is x
    with dropout.masks(one_draw(rows=4)):
        assert dropout.active() and dropout.drop(x, 0.0, "x") is x


@pytest.mark.parametrize("remat", ["none", "full"])
def test_masks_of_a_walk_are_those_of_a_loop_also_in_its_backward_pass(remat):
    """The gradient by a rematerialised scan is that of a loop that keeps everything."""

    def make(rngs: nnx.Rngs) -> Linear:
        return Linear((WIDTH,), (WIDTH,), (None, None), rngs=rngs)

    config = LoraConfig(rank=2, alpha=2.0, dropout=0.3, targets=("",))
    graphdef, params = split(attach(stack(DEPTH, make, nnx.Rngs(0)), config, KEY))
    params["lora_b"] = jnp.asarray(noise(*params["lora_b"].shape))
    x, draw = jnp.asarray(noise(3, WIDTH)), one_draw(rows=3)

    def walked(params):
        with dropout.masks(draw):
            y = walk(merge(graphdef, params), x, lambda layer, x: jnp.tanh(layer(x)), remat=remat)
        return jnp.sum(jnp.square(y))

    def looped(params):
        y = x
        with dropout.masks(draw):
            for number in range(DEPTH):
                kernel, a, b = (params[name][number] for name in ("kernel", "lora_a", "lora_b"))
                with dropout.in_layer(jnp.int32(number)):
                    kept = dropout.drop(y, 0.3, "")
                y = jnp.tanh(y @ kernel + kept @ a @ b)
        return jnp.sum(jnp.square(y))

    with jax.default_matmul_precision("highest"):
        found, gradients = jax.jit(jax.value_and_grad(walked))(params)
        loss, expected = jax.value_and_grad(looped)(params)
    assert_close(found, loss, "loss", 1e-5)
    for address, gradient in expected.items():
        assert_close(gradients[address], gradient, address, 1e-5)
