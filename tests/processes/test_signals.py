"""A run that is asked to stop finishes its step, saves it, and goes on as if never asked."""

import signal

import numpy as np
import pytest
from small_run import curve, held_out

from astrollava_jax.bench.processes import RESUMABLE
from astrollava_jax.run import directory

CASES = {
    "one process, SIGTERM": (1, 2, signal.SIGTERM),
    "two processes, SIGTERM to one": (2, 1, signal.SIGTERM),
    "one process, Ctrl-C": (1, 2, signal.SIGINT),
    "two processes, Ctrl-C at one": (2, 1, signal.SIGINT),
}
"""Processes, devices of each, and what the last of them is sent."""


@pytest.mark.parametrize(
    "case", [*list(CASES)[:2], *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[2:])]
)
def test_no_step_is_lost(case, tiny, tmp_path):
    count, devices, what = CASES[case]
    out = tmp_path / "run"
    with tiny.start(out, count, devices) as run:
        run.wait_for_step(3)
        run.signal(count - 1, what)
        ended = run.ended()
    assert [one.code for one in ended] == [RESUMABLE] * count, "\n".join(run.told())
    done = max(line["step"] for line in run.lines())
    assert 3 <= done < 40 and directory.finished_steps(str(out))[-1] == done
    assert f"stopped after step {done} of 40, which is saved" in ended[-1].told
    with tiny.start(out, count, devices) as run:
        assert f"going on after step {done} of 40" in run.complete()[0].told
    steps = [line["step"] for line in run.lines() if "loss" in line]
    assert steps == list(range(1, 41)), "a step was done twice, or not at all"
    assert curve(out) == curve(tiny.whole)
    assert held_out(out) == held_out(tiny.whole)


def test_who_is_asked_before_the_first_step_goes_at_once(tiny, tmp_path):
    with tiny.start(tmp_path / "run") as run:
        run.wait_until(lambda: len(run.tree(0)) > 1)
        run.signal(0, signal.SIGTERM)
        (ended,) = run.ended(10)
    assert ended.code == RESUMABLE and "SIGTERM: stopped" in ended.told


def test_a_notice_that_comes_while_the_program_is_loaded_stops_the_run(tiny, tmp_path):
    notice = tmp_path / "notice"
    with tiny.start(tmp_path / "run", overrides={"preemption.notice_file": notice}) as run:
        run.wait_until(lambda: len(run.tree(0)) > 1)
        notice.touch()  # the child has just been made: it loads its libraries for seconds
        (ended,) = run.ended()
    assert ended.code == RESUMABLE and f"{notice} announces it: stopped" in ended.told
    with tiny.start(tmp_path / "run", overrides={"preemption.notice_file": notice}) as run:
        run.complete()  # the same file is of the last time


def test_a_second_ctrl_c_ends_at_once(tiny, tmp_path):
    with tiny.start(tmp_path / "run") as run:
        run.wait_for_step(2)
        run.signal(0, signal.SIGSTOP, child=True)  # so that it cannot finish its step
        run.signal(0, signal.SIGINT)
        run.wait_until(lambda: "once more to stop at once" in run.told()[0])
        run.wait_until(lambda: _again(run), 10, ending=True)
        (ended,) = run.ended(10)
    assert ended.code == RESUMABLE and "stopped at once" in ended.told


def _again(run) -> bool:
    run.signal(0, signal.SIGINT)
    return run[0].poll() is not None


@pytest.mark.slow
def test_the_number_of_processes_may_change(tiny, tmp_path):
    out = tmp_path / "run"
    with tiny.start(out, 1, 1) as run:
        run.wait_for_step(12)
        run.signal(0, signal.SIGUSR1)
        assert run.ended()[0].code == RESUMABLE
    with tiny.start(out, 2, 2) as run:
        run.complete()
    found, expected = np.array(curve(out)), np.array(curve(tiny.whole))
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    assert np.array_equal(found[:, 2], expected[:, 2])
