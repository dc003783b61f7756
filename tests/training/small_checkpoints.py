"""Checkpoints of a small state over eight devices, for the tests of whatever happens to them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training.checkpoint import Checkpoints, Restored
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState

KERNEL = "projector/kernel"
SPLIT = PartitionSpec("fsdp")


def state(step: int = 0, spec: PartitionSpec = SPLIT, fill=None) -> TrainState:
    """A kernel that tells its step, over eight devices."""
    mesh = MeshConfig().build()
    numbers = np.arange(64.0, dtype=np.float32).reshape(16, 4) + step
    if fill is not None:
        numbers[3, 1] = fill
    kernel = jax.device_put(numbers, NamedSharding(mesh, spec))
    count = jax.device_put(jnp.asarray(step, jnp.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState({KERNEL: kernel}, AdamState(count, {KERNEL: kernel}, {KERNEL: kernel}))


def saved(folder: Path, *numbers: int, told: list[str] | None = None) -> Checkpoints:
    """Checkpoints of some steps, all finished."""
    checkpoints = Checkpoints(str(folder), keep=3, tell=[].append if told is None else told.append)
    for number in numbers:
        checkpoints.save(state(number), Progress(step=number, position=number), {"seed": 0})
    checkpoints.wait()
    return checkpoints


def restored(folder: Path, told: list[str] | None = None) -> Restored | None:
    """What the next start of the run goes on from."""
    return saved(folder, told=told).restore_newest(state())


def flip(path: Path, place: int = -3) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def data_file(step_folder: Path, item: str = "trainable") -> Path:
    """The largest file of an item."""
    found = (path for path in (step_folder / item).rglob("*") if path.is_file())
    return max(found, key=lambda path: path.stat().st_size)
