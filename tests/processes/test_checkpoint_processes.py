"""Two real processes share the writing and the verifying, and agree on which step is good."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import TrainState

WORKER = Path(__file__).with_name("two_checkpoints.py")


def test_two_processes_agree_and_one_goes_on_from_what_they_saved(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(WORKER.parents[2]),
    }
    both = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), port, str(process)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(told)
    assert all("good" in said for said in told)
    like = {"a": jnp.zeros((8, 8))}
    whole = TrainState(like, AdamState(jnp.int32(0), like, like))
    restored = Checkpoints(str(tmp_path), keep=2).restore_newest(whole)
    assert restored is not None and restored.step == 3
    expected = np.arange(64, dtype=np.float32).reshape(8, 8) + 3
    assert np.array_equal(jax.device_get(restored.state.trainable["a"]), expected)
