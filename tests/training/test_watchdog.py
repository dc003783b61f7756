"""What a run tells the process that watches it."""

import json
import os

import pytest

from astrollava_jax.training import watchdog
from astrollava_jax.training.watchdog import Heart, WatchdogConfig

CONFIG = WatchdogConfig(floor_seconds=60.0, factor=10.0, first_step_seconds=3600.0)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def told(monkeypatch):
    """What stands in the page that the parent reads."""
    page, size = os.memfd_create("page"), 1024
    os.truncate(page, size)
    monkeypatch.setenv(watchdog.PAGE, f"{page}:{os.getpid()}")
    yield lambda: json.loads(os.pread(page, size, 0).rstrip(b"\0"))
    os.close(page)


def steps(heart: Heart, clock: list[float], seconds: list[float]) -> None:
    """Steps of so many seconds, a quarter of each waiting for input."""
    for number, duration in enumerate(seconds):
        heart.beat("input", f"of step {number}")
        clock[0] += duration / 4
        heart.beat("step", str(number))
        clock[0] += duration * 3 / 4
        heart.beat("log")


def test_the_limit_follows_the_median_step_and_what_is_new_has_its_own(clock, told):
    heart = Heart(CONFIG)
    assert told()["phase"] == "start" and told()["limit"] == 3600
    heart.beat("input", "of step 1")
    assert told()["limit"] == 3600 and told()["detail"] == "of step 1"
    steps(heart, clock, [1000, 2, 4, 3, 400])  # the first one compiles
    heart.beat("input")
    assert told()["limit"] == 60, "10 x 3.5 s is less than the floor"
    steps(heart, clock, [20, 20, 20, 20])
    heart.beat("step")
    assert told()["limit"] == 200 and told()["at"] == clock[0]
    heart.beat("evaluate")
    assert told()["limit"] == 3600, "it compiles"
    heart.beat("evaluate")
    assert told()["limit"] == 200
    heart.close()
    assert told()["limit"] is None


@pytest.mark.parametrize("processes", [1, 2])
def test_until_what_there_is_nothing_to_save(processes, clock, told):
    heart = Heart(CONFIG)
    heart.join(processes, lambda _: None)
    found = [told()["nothing_to_save"]]
    for name in ("input", "step", "checkpoint", "end"):
        heart.beat(name)
        found.append(told()["nothing_to_save"])
    one, several = [True, True, True, False, True], [True, False, False, False, True]
    assert found == {1: one, 2: several}[processes]
    heart.close()


def test_without_a_parent_nothing_is_told(monkeypatch):
    monkeypatch.setenv(watchdog.PAGE, f"0:{os.getpid() + 1}")  # it is for another process
    heart = Heart(CONFIG)
    heart.beat("step")
    assert heart.bound() == 60
    heart.close()


def test_a_slow_disk_is_no_hang(told, tmp_path):
    heart = Heart(WatchdogConfig(floor_seconds=0.3))
    heart.beat("checkpoint")
    first = told()["at"]
    for _ in range(50):
        (tmp_path / "large").write_bytes(bytes(1 << 20))
        watchdog.time.sleep(0.01)
        if told()["at"] > first:
            break
    assert told()["at"] > first
    watchdog.time.sleep(0.2)
    last = told()["at"]
    watchdog.time.sleep(0.3)
    assert told()["at"] == last, "nothing moves"
    heart.close()


def test_what_other_processes_move_is_progress_in_any_phase(told):
    count, added = [0], []

    def together(add: int) -> int:
        added.append(add)
        return count[0]

    heart = Heart(WatchdogConfig(floor_seconds=0.3))
    heart.join(2, together)
    heart.beat("step")
    first = told()["at"]
    while told()["at"] == first:
        count[0] += 1
        moved = watchdog.time.monotonic()
        watchdog.time.sleep(0.02)
    assert first < told()["at"] < moved, "the bound begins before the last byte moved"
    assert not any(added), "who only sees that others move does not pass it on"
    looks = len(added)
    while len(added) < looks + 3:  # the last ones that moved are seen
        watchdog.time.sleep(0.01)
    last = told()["at"]
    while len(added) < looks + 8:
        watchdog.time.sleep(0.01)
    assert told()["at"] == last, "nothing moves"
    heart.close()


def test_what_this_process_moves_is_told_to_the_others_while_it_saves(told, tmp_path):
    added = []
    heart = Heart(WatchdogConfig(floor_seconds=0.3))
    heart.join(2, lambda add: added.append(add) or sum(added))
    for phase in ("step", "checkpoint"):
        heart.beat(phase)
        added.clear()
        while len(added) < 5 and not any(added):
            (tmp_path / "large").write_bytes(bytes(1 << 20))
        assert max(added) == (phase == "checkpoint"), phase
    heart.close()
