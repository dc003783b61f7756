"""Several processes as one run: alike or refused, and none outlives another for long."""

import signal
import time

import pytest
from small_run import curve

from astrollava_jax.bench.processes import RESUMABLE
from astrollava_jax.cli.main import MISTAKE

FLOOR = 10.0
"""Seconds after which no progress is a hang, in these tests."""

ENDLESS = {"steps": 100_000, "evaluate": "null", "watchdog.floor_seconds": FLOOR}


@pytest.mark.slow  # the test of preemption compares their curve too
def test_two_processes_compute_what_one_computes(tiny, tmp_path):
    with tiny.start(tmp_path / "two", 2, 1) as run:
        run.complete()
    assert curve(tmp_path / "two") == curve(tiny.whole)
    logs = [line["step"] for line in run.lines() if "loss" in line]
    assert logs == list(range(1, 41)), "one process writes"


def test_a_process_of_another_config_is_named(tiny, tmp_path):
    with tiny.start(tmp_path / "run", 2, 1, each={1: {"seed": 4}}) as run:
        ended = run.ended()
    for one in ended:
        assert one.code == MISTAKE and "Traceback" not in one.told, one.told
        assert "process 1: config.seed: 3 -> 4" in one.told
    assert not (tmp_path / "run" / "base.json").exists()


def test_a_mistake_that_one_process_finds_ends_all(tiny, tmp_path):
    other = tmp_path / "run" / "notes.txt"
    other.parent.mkdir()
    other.write_text("something else")
    with tiny.start(tmp_path / "run", 2, 1) as run:
        ended = run.ended()
    assert [one.code for one in ended] == [MISTAKE, MISTAKE]
    assert "expected a run directory or nothing, found notes.txt" in ended[0].told
    assert "process 0 has ended: " in ended[1].told and "notes.txt" in ended[1].told


def test_who_is_left_of_two_ends_within_the_bound(tiny, tmp_path):
    with tiny.start(tmp_path / "run", 2, 1, overrides=ENDLESS) as run:
        run.wait_for_step(3)
        killed = time.monotonic()
        run.kill(0)  # the one with the coordinator
        ended = run.ended(FLOOR + 10)
    assert [one.code for one in ended] == [-signal.SIGKILL, RESUMABLE], "\n".join(run.told())
    assert time.monotonic() - killed < FLOOR


def test_a_process_that_is_stopped_is_ended_with_its_peer(tiny, tmp_path):
    with tiny.start(tmp_path / "run", 2, 1, overrides=ENDLESS) as run:
        run.wait_for_step(3)
        stopped = time.monotonic()
        run.signal(1, signal.SIGSTOP, child=True)
        ended = run.ended(2 * FLOOR + 10)
    assert time.monotonic() - stopped < 2 * FLOOR
    assert [one.code for one in ended] == [RESUMABLE] * 2, "\n".join(run.told())
    assert "no progress for" in ended[1].told and "the process is stopped" in ended[1].told
    for one in ended:
        assert "Thread 0x" in one.told and "training/loop.py" in one.told, "its stacks"
        assert "while it waited for" in one.told
