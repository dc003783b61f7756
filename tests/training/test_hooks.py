"""What happens after a step: the guard over unreadable records, saves, torn lines of the log."""

import dataclasses
import errno
import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from astrollava_jax import files
from astrollava_jax.training.anomaly import BROKEN, GOOD, NOT_FINITE
from astrollava_jax.training.checkpoint import Checkpoints, NotFinite
from astrollava_jax.training.hooks import BadSteps, Evaluate, Guard, Save
from astrollava_jax.training.loop import Delivery, Diverged, Event, Hook, Surroundings, train
from astrollava_jax.training.metrics import JsonLines, TensorBoard, last_attempt, read_log
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.preemption import PreemptionConfig, Stop
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.watchdog import Heart, WatchdogConfig


def event(
    step: int = 1, skipped: int = 0, total: int = 10, bad: int = GOOD, in_row: int = 0
) -> Event:
    return Event(
        progress=Progress(step, step, step - in_row, skipped, bad=in_row, bad_in_row=in_row),
        total_steps=total,
        state=TrainState({}, AdamState(0, {}, {})),  # pyright: ignore[reportArgumentType]
        metrics={"loss": 1.0, "grad_norm": 1.0, "bad": bad},
        delivery=Delivery(None, 4, 40, 400, 0.5, ["m31 (shard 0, record 7): torn"]),
        seconds=0.1,
        input_wait=0.0,
        device_wait=0.1,
    )


def around(hooks: list[Hook], **more) -> Surroundings:
    """What surrounds a step, with these hooks."""
    others = {
        "recover": lambda event, error: event, "save": lambda event: None,
        "heart": Heart(WatchdogConfig()), "stop": Stop(PreemptionConfig(cloud=None)),
    }  # fmt: skip
    return Surroundings(hooks=hooks, **(others | more))


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


def test_a_run_turns_back_at_every_so_many_bad_steps_and_at_once_from_a_broken_state():
    hook, turned = BadSteps(3), []
    for in_row in range(8):
        try:
            hook(event(20 + in_row, bad=NOT_FINITE if in_row else GOOD, in_row=in_row))
        except Diverged:
            turned.append(in_row)
    assert turned == [3, 6]
    with pytest.raises(Diverged, match="step 21: weights or moments that are not finite"):
        hook(event(21, bad=BROKEN, in_row=1))


class Saved(Checkpoints):
    """Checkpoints that are only counted; the state of step `refused` is not finite."""

    def __init__(self, refused: int = 0):
        self.steps, self.refused = [], refused

    def save(self, state, progress, config):
        if progress.step == self.refused:
            raise NotFinite("projector/kernel: 1 of 6 numbers")
        self.steps.append(progress.step)


def test_nothing_is_saved_while_steps_are_bad_but_it_is_made_up_for_and_the_end_is():
    saved = Saved()
    hook = Save(saved, {}, every_seconds=None, every_steps=4)
    bad = {3: 1, 4: 2, 5: 3, 9: 1, 10: 2}
    for step in range(1, 11):
        hook(event(step, in_row=bad.get(step, 0)))
    assert saved.steps == [6, 8, 10]


def test_who_is_told_of_a_state_that_led_nowhere():
    """The hook that said so, and those after it, hear of the state that was recovered."""
    saved, heard = Saved(refused=7), []
    save = Save(saved, {}, every_seconds=None, every_steps=7)

    def recover(event: Event, error: Diverged) -> Event:
        assert "step 7: projector/kernel: 1 of 6 numbers" in str(error)
        saved.refused = 0
        return dataclasses.replace(event, rolled_back=4)

    def hook(event: Event) -> None:
        heard.append(event.rolled_back)

    assert around([hook, save, hook], recover=recover).told(event(7)).rolled_back == 4
    assert heard == [None, 4] and saved.steps == [7]


def test_numbers_that_json_does_not_know_are_written_as_words_and_read_as_numbers(tmp_path):
    path = str(tmp_path / "log.jsonl")
    log = JsonLines(path)
    bad = {"why": "NaN, and more", "loss": math.nan, "records": ["NaN", "m31"]}
    log.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": -math.inf, "bad": bad})
    log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    line = json.loads(files.read_text(path), parse_constant=refuse)
    assert (line["loss"], line["grad_norm"], line["lr"]) == ("NaN", "Infinity", "-Infinity")
    (found,) = read_log(path)
    assert math.isnan(found["loss"]) and math.isnan(found["bad"]["loss"])
    assert (found["grad_norm"], found["lr"]) == (math.inf, -math.inf)
    assert found["bad"]["records"] == ["NaN", "m31"] and found["bad"]["why"] == "NaN, and more"


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


def test_the_last_attempt_is_known_though_it_was_interrupted_before_the_last_step(tmp_path):
    path = tmp_path / "log.jsonl"
    assert last_attempt(str(path)) == 0
    told = [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2)]
    lines = [json.dumps({"step": step, "attempt": attempt}) for step, attempt in told]
    path.write_text("\n".join([*lines, '{"step": 5, "note": "by hand"}', '{"step": 4, "att']))
    assert last_attempt(str(path)) == 2
    path.write_text('{"step": 5, "note": "by hand"}\n')
    assert last_attempt(str(path)) == 0, "a line of no attempt counts for none"


def test_tensorboard_reads_what_is_written(tmp_path):
    board = TensorBoard(str(tmp_path / "board"))
    board.write(7, {"step": 7, "loss": 0.5, "mfu": None})
    board.close()
    (name,) = files.names(tmp_path / "board")
    events = list(EventFileLoader(str(tmp_path / "board" / name)).Load())
    values = [(e.step, v.tag) for e in events for v in e.summary.value]
    assert values == [(7, "loss")]


@pytest.mark.parametrize(("reason", "saved"), [("SIGHUP", [1]), (None, [])])
def test_what_a_run_that_is_asked_to_stop_learned_is_saved_though_the_log_fails(reason, saved):
    steps = []

    def log(event):
        raise OSError(errno.EIO, "the log")

    stop = Stop(PreemptionConfig(cloud=None))
    stop.reason = reason
    with pytest.raises(OSError, match="the log"):
        train(
            lambda state, *_: (state, {"bad": np.int32(GOOD)}),
            event().state, {}, iter([event().delivery]), Progress(), 10,
            around([log], stop=stop, save=lambda event: steps.append(event.progress.step)),
        )  # fmt: skip
    assert steps == saved
