"""Checkpoints and who disturbs them."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from astrollava_jax.training.checkpoint import Checkpoints, Trained, steps
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState


def state() -> TrainState:
    numbers = {"projector/kernel": jnp.arange(6.0).reshape(2, 3)}
    return TrainState(numbers, AdamState(jnp.zeros((), jnp.int32), numbers, numbers))


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
