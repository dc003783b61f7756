"""What a compiled program holds on one chip, against counts by hand; and what is too large."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astrollava_jax.planning.program import (
    DoesNotFit,
    bytes_per_chip,
    compile_program,
    too_large,
)

GIB = 2**30


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(8), ("fsdp",))


def shape(mesh: Mesh, dims: tuple[int, ...], dtype, *axes: str | None) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def test_one_chip_holds_its_slices_and_the_whole_of_what_is_not_cut(mesh):
    tree = {
        "cut": shape(mesh, (64, 16), jnp.float32, "fsdp"),
        "whole": shape(mesh, (10,), jnp.bfloat16),
    }
    assert bytes_per_chip(tree) == 64 * 16 * 4 // 8 + 10 * 2


def test_memory_is_told_by_class_for_one_chip(mesh):
    weight = shape(mesh, (256, 128), jnp.float32, "fsdp")
    rows = shape(mesh, (64, 256), jnp.float32, "fsdp")

    def step(weight, rows):
        loss, gradient = jax.value_and_grad(lambda w: jnp.sum(jnp.tanh(rows @ w)))(weight)
        return weight - gradient, loss

    program = compile_program(jax.jit(step, donate_argnums=0).lower(weight, rows), "cpu")
    memory = program.memory
    slice_of_weight, own_rows = 256 * 128 * 4 // 8, 64 * 256 * 4 // 8
    assert memory.arguments == slice_of_weight + own_rows
    assert memory.donated == slice_of_weight
    # A chip needs the whole weight, its gradient, and what tanh gave, to compute at all.
    assert memory.temporaries >= 256 * 128 * 4
    assert memory.peak == memory.arguments + memory.temporaries + memory.outputs - memory.donated
    assert memory.activations == memory.peak - memory.arguments
    kinds = {one.kind: one for one in program.collectives}
    assert kinds["all-gather"].num_bytes == 256 * 128 * 4


@pytest.mark.parametrize(
    ("said", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (17.33G) exceeds available HBM (15.75G).",
            17.33 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 19.02G of 15.75G hbm. Exceeded hbm capacity by 3.27G.",
            19.02 * GIB,
            15.75 * GIB,
        ),
        ("Used 900.5M of 512M hbm.", 900.5 * 2**20, 512 * 2**20),
    ],
)
def test_both_wordings_of_too_much_memory_are_understood(said, needed, available):
    refused = too_large(said)
    assert refused is not None
    assert (refused.needed, refused.available) == (round(needed), round(available))


def lowered(message: str) -> Mock:
    return Mock(**{"compile.side_effect": jax.errors.JaxRuntimeError(message)})


def test_a_program_that_is_refused_for_its_memory_says_how_much_it_needs():
    said = "temporaries (19.33G) exceeds available HBM (15.75G)."
    with pytest.raises(DoesNotFit, match=r"needs 19\.33 GiB a chip, which has 15\.75"):
        compile_program(lowered(f"RESOURCE_EXHAUSTED: ... HLO {said}"), "tpu")


def test_any_other_error_of_the_compiler_is_told_as_it_is():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem."
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        compile_program(lowered(said), "tpu")
