"""What a run's whole time was spent on, against sums made by hand."""

import pytest

from astrollava_jax.training import goodput
from astrollava_jax.training.goodput import Goodput


def step(number: int, time: float, seconds: float = 10.0, wait: float = 0.0, **more) -> dict:
    """A step's line in the log."""
    return {"step": number, "time": time, "seconds": seconds, "input_wait": wait, **more}


THREE_ATTEMPTS = [
    # Begins at 1000. The first step is there after 100 s, and belongs to the start.
    step(1, 1100, 40, began=1000.0, attempt=1),
    step(2, 1110, attempt=1),
    step(3, 1126, checkpoint_seconds=4, attempt=1),  # saved: 4 s, and 2 s for other things
    step(4, 1136, wait=0.2, attempt=1),  # 2 s of waiting for input
    step(5, 1146, attempt=1),
    # Killed. 54 s later it begins again, from the checkpoint after step 3.
    {"step": 5, "held_out_loss": 2.0, "attempt": 2},  # another kind of line
    step(4, 1260, 30, began=1200.0, attempt=2),
    step(5, 1270, attempt=2),
    step(6, 1285, evaluate_seconds=5, attempt=2),
    # Asked to stop: it saves for 15 s, and ends. Nothing runs for 100 s.
    {"step": 6, "time": 1300, "checkpoint_seconds": 15, "attempt": 2},
    step(7, 1450, 20, began=1400.0, attempt=3),
    step(8, 1460, attempt=3),
]


def test_the_time_of_three_attempts_is_all_accounted_for():
    found = Goodput(THREE_ATTEMPTS)
    assert found.seconds == {
        "computed": 10 + 10 + 10 + 10 + 10,  # steps 2, 3; 5, 6 of the second attempt; 8
        "lost": 8 + 10,  # steps 4 and 5 of the first
        "input_wait": 2,
        "checkpoint": 4 + 15,
        "evaluate": 5,
        "start": 100 + 60 + 50,
        "not_running": 54 + 100,
        "other": 2,
    }
    assert sum(found.seconds.values()) == 1460 - 1000
    assert found.share == 50 / 460
    assert found.told() == (
        "goodput 10.9% of 7 min 40 s since the run first began: computed 10.9%, redone or lost "
        "3.9%, input wait 0.4%, checkpoints 4.1%, held-out loss 1.1%, start and compile 45.7%, not "
        "running 33.5%, other 0.4%"
    )


def test_what_will_be_redone_does_not_count_as_soon_as_an_attempt_begins():
    found = Goodput(THREE_ATTEMPTS[:5])
    assert (found.seconds["computed"], found.seconds["lost"]) == (38, 0)
    found.begin(1200.0, step=4)
    assert (found.seconds["computed"], found.seconds["lost"]) == (20, 18)
    assert found.seconds["not_running"] == 54
    found.add(THREE_ATTEMPTS[6])
    assert found.seconds["start"] == 100 + 60, "it began once"


def test_steps_that_taught_nothing_or_were_rolled_back_are_lost():
    lines = [
        step(1, 10, began=0.0),
        *(step(number, 10 * number) for number in range(2, 6)),
        step(6, 60, bad={}),
        step(7, 70, bad={}, rolled_back_to=4),
        step(8, 80),
    ]
    found = Goodput(lines)
    assert (found.seconds["computed"], found.seconds["lost"]) == (40, 30)  # 2, 3, 4, 8; 5, 6, 7


def test_lines_from_before_times_were_kept_tell_nothing():
    old = {"step": 1, "seconds": 10.0, "input_wait": 0.0}
    assert sum(Goodput([old, old]).seconds.values()) == 0
    assert Goodput([old]).told().startswith("goodput 0.0% of 0.0 s")
    assert sum(Goodput([old, step(2, 20, began=5.0)]).seconds.values()) == 15


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9.46, "9.5 s"), (760.0, "12 min 40 s"), (11100.0, "3 h 05 min"), (3599.7, "1 h 00 min")],
)
def test_durations_in_words(seconds, words):
    assert goodput.duration(seconds) == words


def test_a_start_that_waited_for_the_one_before_counts_no_second_twice():
    found = Goodput()
    found.begin(0.0, 1)
    found.add({"step": 1, "time": 100.0, "seconds": 10.0, "input_wait": 0.0})
    found.begin(90.0, 2)
    found.add({"step": 2, "time": 150.0, "seconds": 10.0, "input_wait": 0.0})
    assert sum(found.seconds.values()) == pytest.approx(150.0)
