"""The same steps on other meshes: a small part of what `bench.meshes` does whole."""

import dataclasses

import pytest

from astrollava_jax.bench import meshes, small_job
from astrollava_jax.bench.kill_matrix import largest_difference
from astrollava_jax.bench.meshes import Found, Mesh, compare, losses, table

FOUND = Found("full", "float32", "data 8 x fsdp 1", 1e-6, (2.5, 2.5))


@pytest.mark.slow
def test_two_processes_with_adapters_learn_what_one_does(tmp_path):
    small_job.write(tmp_path, spare_words=meshes.SPARE_WORDS)
    expected = losses(str(tmp_path), "lora", "float32", meshes.FIRST)
    assert len(expected) == 20 and expected[-1] < expected[0]
    mesh = Mesh({"data": 2, "fsdp": 2, "tensor": 2}, processes=2)
    found = compare(str(tmp_path), "lora", "float32", mesh, expected)
    assert found.faults == [] and found.largest_difference > 0


def test_float32_is_held_and_bfloat16_is_told():
    assert FOUND.faults == []
    far = dataclasses.replace(FOUND, largest_difference=2e-5)
    (fault,) = far.faults
    assert fault == (
        "full, float32, data 8 x fsdp 1: losses differ by 2.0e-05, expected at most 1e-05"
    )
    assert dataclasses.replace(far, compute="bfloat16").faults == []
    assert dataclasses.replace(FOUND, largest_difference=float("nan")).faults


def test_a_loss_that_is_no_number_is_seen_wherever_it_stands():
    assert largest_difference([2.0, 3.0, 5.0], [2.0, 4.0, 4.0]) == 0.25
    for place in range(3):
        losses = [2.0, 4.0, 4.0]
        losses[place] = float("nan")
        far = dataclasses.replace(
            FOUND, largest_difference=largest_difference(losses, [2.0, 4.0, 4.0])
        )
        assert far.faults
    assert largest_difference([2.0], [2.0, 4.0]) == float("inf")


def test_the_table_has_a_line_for_every_run():
    lines = table([FOUND]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1] == "| full | float32 | data 8 x fsdp 1 | 1.0e-06 |"


def test_a_mesh_tells_what_is_unusual_of_it():
    assert str(Mesh({"data": 2, "fsdp": 4})) == "data 2 x fsdp 4"
    mesh = Mesh({"fsdp": 4, "tensor": 2, "frozen": "replicated"}, processes=2)
    assert str(mesh) == "fsdp 4 x tensor 2, frozen weights replicated, 2 processes"
