"""A real run below `launch/again.sh`: killed, it comes to its end by itself; asked to stop, not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import curve

from astrollava_jax.bench.processes import RESUMABLE, children, environment, lines
from astrollava_jax.run import directory

AGAIN = Path(__file__).parents[2] / "launch" / "again.sh"


def begin(tiny, out: Path) -> subprocess.Popen[str]:
    """The tiny run, as a person starts it."""
    words = {"out": out, "steps": 40, "checkpoint.every_steps": 10, "evaluate.every_steps": 2}
    options = [word for key, value in words.items() for word in (f"--{key}", f"{value}")]
    around = environment(2, ASTROLLAVA_PAUSE="0.1", JAX_COMPILATION_CACHE_DIR=tiny.compiled)
    return subprocess.Popen(
        ["bash", str(AGAIN), sys.executable, "-m", "astrollava_jax", "train", tiny.file, *options],
        env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    end = time.monotonic() + 600
    while not any(line["step"] >= step and "loss" in line for line in lines(str(out))):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_killed_comes_to_its_end_by_itself(tiny, tmp_path):
    out = tmp_path / "run"
    process = begin(tiny, out)
    wait_for_step(process, out, 12)
    (started,) = children(process.pid)
    os.kill(started, signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "ended with 137; start 2 of at most 100" in said
    assert curve(out) == curve(tiny.whole)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_is_saved_and_not_started_again(tiny, tmp_path):
    out = tmp_path / "run"
    process = begin(tiny, out)
    wait_for_step(process, out, 3)
    process.terminate()
    said, _ = process.communicate(timeout=600)
    assert process.returncode == RESUMABLE
    assert "asked to stop by SIGTERM; the command ended with 75" in said
    done = max(line["step"] for line in lines(str(out)))
    assert done < 40 and directory.finished_steps(str(out))[-1] == done
