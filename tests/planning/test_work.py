"""FLOPs of a traced function, against counts by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from astrollava_jax.planning.work import executed

A, B, C = 3, 5, 7
X, W = jnp.ones((A, B)), jnp.ones((B, C))
ONE = 2 * A * B * C


def flops(function, *arguments) -> int:
    found = executed(jax.make_jaxpr(function)(*arguments))
    assert found.inexact == ()
    return found.flops


def test_a_product_costs_two_for_each_number_that_is_multiplied():
    assert flops(jnp.matmul, X, W) == ONE
    assert flops(lambda x, w: jnp.einsum("nab,nbc->nac", x, w), jnp.ones((4, A, B)),
                 jnp.ones((4, B, C))) == 4 * ONE  # fmt: skip


def test_a_loop_counts_its_rounds_inside_other_loops_too():
    def twice(x, w):
        return jax.lax.scan(lambda carry, _: (carry + jnp.sum(x @ w), None), 0.0, length=2)[0]

    def six_times(x, w):
        return jax.lax.scan(lambda carry, _: (carry + twice(x, w), None), 0.0, length=3)[0]

    assert flops(six_times, X, W) == 6 * ONE


def test_what_the_backward_pass_makes_again_counts_again():
    def loss(w, remat):
        product = jax.checkpoint(lambda w: jnp.sin(X @ w)) if remat else lambda w: jnp.sin(X @ w)
        return jnp.sum(product(w))

    assert flops(jax.grad(lambda w: loss(w, False)), W) == 2 * ONE
    assert flops(jax.grad(lambda w: loss(w, True)), W) == 3 * ONE


def test_of_two_branches_the_longer_counts():
    def either(flag, x, w):
        return jax.lax.cond(flag, lambda: jnp.sum(x @ w), lambda: jnp.sum(x[:1] @ w))

    assert flops(either, True, X, W) == ONE


def test_a_convolution_multiplies_each_output_with_its_window():
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((4, 4, 3, 10))

    def patches(image, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", dimension_numbers=dims)

    assert flops(patches, image, kernel) == 2 * (2 * 2 * 10) * (4 * 4 * 3)


def test_what_each_chip_does_by_itself_counts_for_all_of_them():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    rows = PartitionSpec("data")

    def local(x, w):
        return x @ w

    def product(x, w):
        each = jax.shard_map(local, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
        return each(x, w)

    # Two chips of a pair compute the same rows: all eight are at work.
    assert flops(product, jnp.ones((4 * A, B)), W) == 8 * ONE


def test_a_kernel_counts_all_of_its_tiles_and_is_told_to_do_so():
    def kernel(x, out):
        pl.when(pl.program_id(0) == 0)(lambda: out.__setitem__(..., x[...] @ x[...].T))

    def function(x):
        out = jax.ShapeDtypeStruct((A, A), jnp.float32)
        return pl.pallas_call(kernel, out, grid=(2, 3), name="mine", interpret=True)(x)

    found = executed(jax.make_jaxpr(function)(X))
    assert found.flops == 2 * 3 * 2 * A * B * A
    assert found.inexact == ("mine: all tiles, those passed over too",)


@pytest.mark.parametrize("layout", ["BTNH", "BNTH"])
def test_attention_by_cudnn_counts_all_pairs_and_is_told_to_do_so(layout, monkeypatch):
    """Traced as where cuDNN is: two products forward, and five back."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    rows, queries, keys, heads, size = 2, 64, 128, 4, 8

    def noise(length, heads):
        ordered = {"B": rows, "T": length, "N": heads, "H": size}
        return jnp.ones([ordered[axis] for axis in layout], jnp.bfloat16)

    def gathered(q, k, v):
        how = {"mask_type": fused_attention_stablehlo.MaskType.NO_MASK, "qkv_layout": layout}
        found: Any = fused_attention_stablehlo.dot_product_attention(q, k, v, **how)
        return jnp.sum(found.astype(jnp.float32))

    arrays = noise(queries, heads), noise(keys, heads // 2), noise(keys, heads // 2)
    one = 2 * rows * heads * queries * keys * size
    for function, products in ((gathered, 2), (jax.grad(gathered), 2 + 5)):
        found = executed(jax.make_jaxpr(function)(*arrays))
        assert found.flops == products * one
        assert found.inexact == ("attention by cuDNN: all pairs, those passed over too",)


def test_of_a_loop_of_unknown_length_one_round_counts():
    def until(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: y @ y, x)

    found = executed(jax.make_jaxpr(until)(jnp.ones((A, A))))
    assert found.flops == 2 * A**3
    assert found.inexact == ("a loop of unknown length: one round is counted",)


def test_a_kernel_that_tells_its_cost_is_believed():
    cost = pl.CostEstimate(flops=1234, transcendentals=0, bytes_accessed=0)

    def function(x):
        return pl.pallas_call(
            lambda x, out: None, jax.ShapeDtypeStruct((A, A), jnp.float32), cost_estimate=cost,
            interpret=True,
        )(x)  # fmt: skip

    assert flops(function, X) == 1234
