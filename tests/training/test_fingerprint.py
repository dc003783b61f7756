"""A fingerprint is the same wherever an array lies, and another when one bit of it is."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training.fingerprint import Twin, on_devices, on_host

SHAPE = (4, 8, 24)


def numbers(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [
        ({"fsdp": 8}, PartitionSpec(None, "fsdp")),
        ({"data": 2, "fsdp": 4}, PartitionSpec("fsdp", None, "data")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, PartitionSpec(("data", "fsdp"), "tensor")),
        ({"data": 8, "fsdp": 1}, PartitionSpec()),
    ],
)
def test_it_is_the_same_on_every_mesh_and_on_the_host(mesh, spec):
    placed = jax.device_put(numbers(), NamedSharding(MeshConfig(**mesh).build(), spec))
    assert on_devices({"a": placed})[0] == {"a": on_host(numbers())}


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "float16", "uint8", "bool"])
def test_every_kind_of_number_has_one(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    arrays = {"whole": (100 * numbers()).astype(kind), "one": np.asarray(3, kind)}
    assert on_devices({name: jnp.asarray(array) for name, array in arrays.items()})[0] == {
        name: on_host(array) for name, array in arrays.items()
    }


def test_one_flipped_bit_anywhere_changes_both_lanes():
    generator, before = np.random.default_rng(1), on_host(numbers())
    flipped = [numbers() for _ in range(200)]
    for array in flipped:
        place, bit = generator.integers(array.size), generator.integers(32)
        array.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    for array in flipped:
        assert all(now != then for now, then in zip(on_host(array), before))
    on_device = on_devices({str(i): jnp.asarray(array) for i, array in enumerate(flipped[:8])})[0]
    assert on_device == {str(i): on_host(array) for i, array in enumerate(flipped[:8])}


def test_two_swapped_elements_change_it():
    generator, before = np.random.default_rng(2), on_host(numbers())
    for _ in range(200):
        array = numbers().reshape(-1)
        one, other = generator.choice(array.size, 2, replace=False)
        array[[one, other]] = array[[other, one]]
        assert on_host(array.reshape(SHAPE)) != before


def test_two_signs_turned_change_it():
    array = numbers()
    array[0, 0, :2] *= -1
    assert on_host(array) != on_host(numbers())


def test_its_parts_may_come_in_any_order():
    shape = (3, 5, 70_000)
    whole = np.random.default_rng(3).integers(0, 2**31, shape, np.int32)
    twin = Twin(shape)
    for start in [(2, 0, 0), (0, 3, 0), (0, 0, 0), (1, 0, 0)]:
        stop = {(0, 3, 0): (1, 5), (0, 0, 0): (1, 3)}.get(start, (start[0] + 1, 5))
        twin.add(whole[start[0] : stop[0], start[1] : stop[1]], start)
    assert twin.value == on_host(whole) == on_devices({"a": jnp.asarray(whole)})[0]["a"]


def test_what_is_not_finite_is_counted_in_the_same_pass():
    array = numbers()
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    zeros = jnp.zeros(3, jnp.int32)
    assert on_devices({"bad": jnp.asarray(array), "good": zeros})[1] == {"bad": 3}
