"""What happens after a step: the guard over unreadable records, the log, its torn lines."""

import json

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from astrollava_jax import files
from astrollava_jax.training.hooks import Evaluate, Guard
from astrollava_jax.training.loop import Delivery, Event
from astrollava_jax.training.metrics import JsonLines, TensorBoard, read_log
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState


def event(step: int = 1, skipped: int = 0, total: int = 10) -> Event:
    return Event(
        progress=Progress(step=step, position=step, updates=step, skipped=skipped),
        total_steps=total,
        state=TrainState({}, AdamState(0, {}, {})),  # pyright: ignore[reportArgumentType]
        metrics={"loss": 1.0},
        delivery=Delivery(None, 4, 40, 400, 0.5, ["m31 (shard 0, record 7): torn"]),
        seconds=0.1,
        input_wait=0.0,
    )


def test_a_run_stops_when_more_records_are_unreadable_than_allowed():
    guard = Guard(allowed=0.01, samples=200)
    guard(event(skipped=2))
    with pytest.raises(ValueError, match=r"3 unreadable record\(s\) of 200.*\n.*m31 \(shard 0"):
        guard(event(skipped=3))


def test_the_held_out_loss_comes_every_so_many_steps_and_at_the_end():
    found = []
    hook = Evaluate(4, lambda state: (2.0, ["m31"]), lambda *told: found.append(told))
    for step in range(1, 11):
        hook(event(step))
    assert found == [(4, 2.0, ["m31"]), (8, 2.0, ["m31"]), (10, 2.0, ["m31"])]


def test_readers_take_the_last_line_of_a_step_and_pass_over_a_torn_one(tmp_path):
    path = str(tmp_path / "log.jsonl")
    files.write_text(path, '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo')
    log = JsonLines(path)
    log.write({"step": 2, "loss": 2.25})
    log.write({"step": 2, "held_out_loss": 2.75})
    log.close()
    assert read_log(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.25, "held_out_loss": 2.75},
    ]
    assert json.loads(files.read_text(path).splitlines()[-1]) == {"step": 2, "held_out_loss": 2.75}


def test_tensorboard_reads_what_is_written(tmp_path):
    board = TensorBoard(str(tmp_path / "board"))
    board.write(7, {"step": 7, "loss": 0.5, "mfu": None})
    board.close()
    (name,) = files.names(tmp_path / "board")
    events = list(EventFileLoader(str(tmp_path / "board" / name)).Load())
    values = [(e.step, v.tag) for e in events for v in e.summary.value]
    assert values == [(7, "loss")]
