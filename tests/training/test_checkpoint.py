"""Checkpoints and who disturbs them."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from astrollava_jax.training.anomaly import History
from astrollava_jax.training.checkpoint import Checkpoints, Restored, Trained, steps
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState


def state(history: History | None = None) -> TrainState:
    numbers = {"projector/kernel": jnp.arange(6.0).reshape(2, 3)}
    return TrainState(numbers, AdamState(jnp.zeros((), jnp.int32), numbers, numbers), history)


RING = History(jnp.int32(5), jnp.array([0.1, 1 / 3, 3.0]), jnp.array([2.0, 1e-30, 7.0]))


def restored(folder: str, like: TrainState) -> Restored:
    checkpoints = Checkpoints(folder, keep=2)
    found = checkpoints.restore_newest(like)
    checkpoints.close()
    assert found is not None
    return found


def test_what_was_remembered_of_the_steps_before_comes_back_to_the_last_bit(tmp_path):
    folder, progress = str(tmp_path / "checkpoints"), Progress(9, 9, 6, bad=3, bad_in_row=1)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state(RING), progress, {})
    checkpoints.close()
    found = restored(folder, state(RING))
    assert found.progress == progress and found.state.history is not None
    for one, other in zip(found.state.history, RING):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    longer = History(jnp.int32(0), jnp.zeros(4), jnp.zeros(4))
    for like in (None, longer):  # the run looks for spikes no more, or in another window
        assert restored(folder, state(like)).state.history is None


def test_a_checkpoint_of_before_there_were_bad_steps_opens(tmp_path):
    folder, old = str(tmp_path / "checkpoints"), {"step": 4, "position": 4, "updates": 4}
    items = {
        "trainable": state().trainable,
        "optimizer": state().optimizer._asdict(),
        "progress": old | {"skipped": 1},
    }
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints._checkpointer.save_checkpointables(4, items)
    checkpoints.close()
    found = restored(folder, state(RING))
    assert found.progress == Progress(4, 4, 4, 1, bad=0, bad_in_row=0)
    assert found.state.history is None


def test_a_save_that_has_begun_is_finished_before_ctrl_c_is_heard(tmp_path, monkeypatch):
    folder = str(tmp_path / "checkpoints")
    checkpoints = Checkpoints(folder, keep=2)
    writer = checkpoints._checkpointer
    begin = writer.save_checkpointables_async

    def disturbed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return begin(*arguments, **options)

    monkeypatch.setattr(writer, "save_checkpointables_async", disturbed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(state(), Progress(step=3), {"seed": 0})
    checkpoints.close()
    assert steps(folder) == [3] and checkpoints.last_good == 3
    assert np.array_equal(Trained(folder, 3)["projector/kernel"], [[0, 1, 2], [3, 4, 5]])
