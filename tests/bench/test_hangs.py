"""A whole run hangs, is told of and is ended; by the bench that measures it."""

import dataclasses
import importlib
import re
import types

import pytest

from astrollava_jax import files
from astrollava_jax.bench import hangs, small_job
from astrollava_jax.data import pipeline
from astrollava_jax.training import loop

OTHERS = [name for name in hangs.HANGS if name != "worker"]
FOUND = hangs.Found(
    "input", 75, 9.5, [], "no progress for 8 s; while it waited for input\nin hang_here"
)


@pytest.mark.parametrize(
    "name", ["worker", *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_a_run_that_hangs_is_ended_within_the_bound(name, tmp_path):
    small_job.write(tmp_path)
    found = hangs.hang(name, str(tmp_path), str(tmp_path / "run"))
    assert not found.faults, "\n".join([*found.faults, found.told])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": 1}, "ended with 1, expected 75"),
        ({"seconds": 10.1}, "ended after 10.10 s, expected 10 at most"),
        ({"left": [3]}, r"left processes: [3]"),
        ({"hang": "checkpoint"}, "did not tell: while it waited for a checkpoint"),
        ({"hang": "step"}, "did not tell: while it waited for a step"),
    ],
)
def test_what_must_not_be_is_a_fault(change, fault):
    assert FOUND.faults == []
    assert fault in dataclasses.replace(FOUND, **change).faults[0]


@pytest.mark.parametrize("name", hangs.HANGS)
def test_what_is_patched_is_there(name, monkeypatch):
    hang = hangs.HANGS[name]
    module = importlib.import_module(f"astrollava_jax.{hang.module}")
    monkeypatch.setattr(pipeline._PlannedRow, "__call__", pipeline._PlannedRow.__call__)
    patched, patch = types.SimpleNamespace(**vars(module)), {}
    exec(f"def patch(module):\n{hang.patch}", patch)
    patch["patch"](patched)
    assert set(vars(patched)) == set(vars(module)), "a name is patched that is not there"


def test_the_loop_asks_jax_for_nothing_but_what_stands_in_for_it():
    assert loop.__file__ is not None
    asked = set(re.findall(r"\bjax\.(\w+)", files.read_text(loop.__file__)))
    assert asked == {"device_get", "process_count"}


def test_the_table_has_a_line_for_every_place():
    slow = dataclasses.replace(FOUND, seconds=9.7)
    assert hangs.table([FOUND, slow]).splitlines()[-1] == "| input | 2 | 9.50 | 9.60 | 9.70 |"
