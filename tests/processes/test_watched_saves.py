"""Who waits for another process's save waits as long as its bytes move, and no longer."""

import time
from pathlib import Path

import pytest
from watched_saves import FLOOR

from astrollava_jax.bench.processes import RESUMABLE, Ended, Processes

WORKER = Path(__file__).with_name("watched_saves.py")


def ended(folder: Path, storage: str) -> list[Ended]:
    """How two processes end that save into one folder, and how long after the last progress."""
    with Processes(storage, folder, 2, program=[str(WORKER)]) as run:
        found = run.ended()
        now = time.monotonic()
    told = [line.split()[-1] for line in found[1].told.splitlines() if "last progress" in line]
    return [one._replace(seconds=now - float(told[0])) for one in found] if told else found


def test_a_slow_disk_of_one_process_is_no_hang_of_those_who_wait_for_it(tmp_path):
    found = ended(tmp_path, "slow")
    assert [one.code for one in found] == [0, 0], "\n".join(one.told for one in found)
    assert all("good: 2" in one.told for one in found)


@pytest.mark.parametrize(
    ("storage", "what"),
    [
        pytest.param("stops", "the process is stopped", marks=pytest.mark.slow),
        ("is_stuck", "in is_stuck"),
    ],
)
def test_a_process_that_ends_no_save_ends_all_within_the_bound(storage, what, tmp_path):
    found = ended(tmp_path, storage)
    told = "\n".join(one.told for one in found)
    assert [one.code for one in found] == [RESUMABLE] * 2, told
    assert "no progress for" in found[1].told and what in found[1].told
    assert all("while it waited for a checkpoint" in one.told for one in found), told
    assert all("Thread 0x" in one.told for one in found), "their stacks"
    assert found[0].seconds < FLOOR
