"""Real runs, really killed: a small part of what `bench.kill_matrix` does whole."""

import dataclasses

import pytest

from astrollava_jax.bench.kill_matrix import Case, Found, Matrix, table

FOUND = Found(Case("SIGKILL", 2, "full"), [75, -9], 0.5, 14, 2, 0.0, True)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Matrix:
    return Matrix(str(tmp_path_factory.mktemp("matrix")))


@pytest.mark.parametrize(
    "case",
    [Case("mid-save", 1, "full"), pytest.param(Case("SIGKILL", 2, "lora"), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(case, matrix):
    found = matrix.run(case)
    assert found.faults == []
    assert found.equal and found.told_step >= 6


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"codes": [1, -9]}, "expected 75 of the survivors"),
        ({"lost_steps": 13}, "lost 13 steps"),
        (
            {"equal": False, "largest_difference": 1e-7},
            "differs from the undisturbed run by 1.0e-07",
        ),
        ({"case": Case("SIGTERM", 2, "full"), "codes": [75, 75], "lost_steps": 1}, "at most 0"),
    ],
)
def test_what_must_not_be_is_a_fault(change, fault):
    assert FOUND.faults == []
    (told,) = dataclasses.replace(FOUND, **change).faults
    assert fault in told


def test_the_table_has_a_line_for_every_case():
    lines = table([FOUND]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1] == "| SIGKILL | 2 | full | 75 -9 | 0.5 | 14 | 2 | 0e+00 | bit for bit |"
