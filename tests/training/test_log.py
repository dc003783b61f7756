"""What the log tells of time, by clocks that the test turns."""

import dataclasses
import io
import json

import pytest
from rich.console import Console
from test_hooks import Saved, event

from astrollava_jax import files
from astrollava_jax.training.goodput import Goodput
from astrollava_jax.training.log import Log
from astrollava_jax.training.loop import Event
from astrollava_jax.training.metrics import JsonLines


class Clocks:
    """The time of day, and what was waited for so far."""

    def __init__(self):
        self.now, self.spent = 1000.0, {}

    def wait(self, seconds: float, phase: str) -> None:
        self.now += seconds
        self.spent = {**self.spent, phase: self.spent.get(phase, 0.0) + seconds}


def log_of(path: str, clocks: Clocks) -> tuple[Log, io.StringIO]:
    """A log that begins now, and what it prints."""
    printed = io.StringIO()
    goodput = Goodput()
    goodput.begin(clocks.now, 1)
    checkpoints = Saved()
    checkpoints.last_good = None  # pyright: ignore[reportAttributeAccessIssue]
    log = Log(
        Console(file=printed, soft_wrap=True), JsonLines(path), None, every_steps=2, attempt=1,
        chips=1, first_group="projector", checkpoints=checkpoints, work=lambda event: None,
        records=lambda step: [], goodput=goodput, began=clocks.now, spent=lambda: clocks.spent,
        clock=lambda: clocks.now,
    )  # fmt: skip
    return log, printed


def done(step: int) -> Event:
    """A step of 10 s: 1 s for input, 8 s for the device."""
    metrics = {"loss": 1.0, "grad_norm": 1.0, "bad": 0, "learned_tokens": 5, "lr/projector": 0.1}
    return dataclasses.replace(
        event(step), metrics=metrics, seconds=10.0, input_wait=1.0, device_wait=8.0
    )


@pytest.fixture
def told(tmp_path):
    """Three steps of ten; the run saves within the first and after the third."""
    clocks, path = Clocks(), str(tmp_path / "log.jsonl")
    log, printed = log_of(path, clocks)
    clocks.wait(90, "start")
    for step, saving in ((1, 3.0), (2, 0.0), (3, 0.0)):
        clocks.wait(10, "step")
        clocks.wait(saving, "checkpoint")
        log(done(step))
    clocks.wait(7, "checkpoint")
    log.close()
    return [json.loads(line) for line in files.read_text(path).splitlines()], printed.getvalue()


def test_each_line_tells_the_time_and_what_was_waited_for_since_the_one_before(told):
    lines, _ = told
    keys = ("step", "time", "checkpoint_seconds")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        (1, 1103.0, 3.0), (2, 1113.0, 0.0), (3, 1123.0, 0.0), (3, 1130.0, 7.0),
    ]  # fmt: skip
    assert [line.get("began") for line in lines] == [1000.0, None, None, None]
    assert (lines[0]["input_wait"], lines[0]["device_wait"]) == (0.1, 0.8)
    assert "loss" not in lines[3]


def test_the_printed_line_tells_stalls_of_steps_that_were_not_printed_too(told):
    _, printed = told
    line, end = (line for line in printed.splitlines() if "goodput" in line)
    assert line.startswith("step 2/10 ")
    assert "input_wait 0.100  device_wait 0.800  checkpoint 3.0 s  packing" in line
    assert line.endswith(f"goodput {9 / 113:.3f}")
    assert end.startswith(f"goodput {18 / 130:.1%} of 2 min 10 s since the run first began:")
    assert f"checkpoints {10 / 130:.1%}" in end and f"start and compile {100 / 130:.1%}" in end


def test_a_finished_run_has_no_line_after_its_last_step(tmp_path):
    clocks, path = Clocks(), str(tmp_path / "log.jsonl")
    log, printed = log_of(path, clocks)
    log(done(10))
    log.close()
    (line,) = files.read_text(path).splitlines()
    assert json.loads(line)["step"] == 10
    assert "goodput" in printed.getvalue().splitlines()[-1]


def test_a_disk_that_takes_no_more_does_not_hide_how_the_run_has_ended(tmp_path):
    class Full:
        """A disk that is full, told when the rest is written too."""

        def write(self, line: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    log, printed = log_of(str(tmp_path / "log.jsonl"), Clocks())
    log(done(1))
    log._lines.close()
    log._lines._handle = Full()  # pyright: ignore[reportAttributeAccessIssue]
    log.close()
    assert printed.getvalue().count("the end of the log could not be written") == 2
