"""Which steps are traced, and what is said of those that cannot be."""

import pytest

from astrollava_jax import files
from astrollava_jax.training.trace import Trace
from astrollava_jax.training.watchdog import Heart, WatchdogConfig


@pytest.fixture
def trace(tmp_path):
    """Makes a trace of a range; what it says stands in `told`."""

    def make(first: int, last: int) -> Trace:
        return Trace(first, last, str(tmp_path), Heart(WatchdogConfig()), make.told.append)

    make.told = []
    return make


@pytest.fixture
def profiler(monkeypatch) -> list:
    """In place of JAX's profiler: which step is traced, and when it begins and ends."""
    told = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: told.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: told.append("stop"))
    return told


def run(trace: Trace, profiler: list, first: int, last: int) -> None:
    for step in range(first, last + 1):
        with trace.around(step):
            profiler.append(step)
    trace.close()


def test_the_steps_from_the_first_to_the_last_are_traced(trace, profiler):
    run(trace(3, 4), profiler, 1, 6)
    assert profiler == [1, 2, "start", 3, 4, "stop", 5, 6]


def test_a_run_that_goes_on_within_the_range_traces_the_rest(trace, profiler):
    run(trace(3, 6), profiler, 5, 7)
    assert profiler == ["start", 5, 6, "stop", 7]
    assert "2 of 4 steps traced" in trace.told[-1]


def test_a_run_that_ends_within_the_range_writes_what_it_has(trace, profiler):
    run(trace(3, 6), profiler, 1, 4)
    assert profiler == [1, 2, "start", 3, 4, "stop"]
    assert "profile 3:6: 2 of 4 steps traced" in trace.told[-1]


def test_a_range_that_the_run_does_not_reach_is_said_once(trace, profiler):
    past = trace(3, 4)
    past.expect(4, 8)
    run(past, profiler, 5, 8)
    beyond = trace(9, 9)
    beyond.expect(8, 8)
    beyond.close()
    stopped = trace(3, 4)
    stopped.expect(0, 8)
    run(stopped, profiler, 1, 2)
    assert "start" not in profiler
    assert trace.told == [
        "profile 3:4: nothing will be traced, this start does steps 5 to 8",
        "profile 9:9: nothing will be traced, all is done",
        "profile 3:4: the run ended before, nothing was traced",
    ]


def test_a_fault_within_the_range_leaves_a_trace(trace, tmp_path):
    """JAX's own profiler, which can be started again afterwards."""
    broken = trace(2, 4)
    with pytest.raises(OSError, match="the device"), broken.around(2):
        raise OSError("the device")
    broken.close()
    again = trace(1, 1)
    with again.around(1):
        pass
    again.close()
    folder = tmp_path / "profile" / "process_0"
    assert len([name for name in files.walk(folder) if name.endswith(".xplane.pb")]) >= 1
    assert "0 of 3 steps traced" in trace.told[0] and "1 of 1 steps traced" in trace.told[1]


@pytest.mark.parametrize(("first", "last"), [(0, 3), (4, 3)])
def test_a_range_that_is_none_is_refused(first, last, trace):
    with pytest.raises(ValueError, match=f"profile {first}:{last}: expected FIRST:LAST"):
        trace(first, last)


@pytest.mark.parametrize("what", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_is_told_of_and_ends_nothing(what, trace, profiler, monkeypatch):
    def fail(*_):
        raise RuntimeError("only one profile may be run at a time")

    monkeypatch.setattr(f"jax.profiler.{what}", fail)
    run(trace(3, 4), profiler, 1, 6)
    assert [step for step in profiler if isinstance(step, int)] == [1, 2, 3, 4, 5, 6]
    assert trace.told == ["profile 3:4: cannot be traced: only one profile may be run at a time"]
