"""Checkpoints: trainable weights, moments, progress and config as one unit, written by Orbax.

A checkpoint holds named items, so that an item added later does not break older ones. Frozen
weights are not in it: the run names the files that give them.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from astrollava_jax import files
from astrollava_jax.training.anomaly import History
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState


class NotFinite(ValueError):
    """What was to be saved holds numbers that are not finite; nothing was written."""


class Restored(NamedTuple):
    """A checkpoint on the devices."""

    step: int
    state: TrainState
    progress: Progress


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`."""

    def __init__(self, folder: str, keep: int):
        policies = ocp.training.save_decision_policies, ocp.training.preservation_policies
        self.folder = files.absolute(folder)
        self._checkpointer = ocp.training.Checkpointer(
            files.make_folder(self.folder),
            cleanup_tmp_directories=True,
            save_decision_policy=policies[0].FixedIntervalPolicy(1),
            preservation_policy=policies[1].LatestN(keep),
        )
        self._pending: Any = None
        self._pending_step: int | None = None
        self._last_good: int | None = self.latest()

    def latest(self) -> int | None:
        """The newest finished step, if there is one."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def last_good(self) -> int | None:
        """The newest step that stands on the disk, whole: its folder gets its name at the end."""
        if self._pending_step is not None and files.exists(
            files.join(self.folder, str(self._pending_step))
        ):
            self._last_good, self._pending_step = self._pending_step, None
        return self._last_good

    def save(self, state: TrainState, progress: Progress, config: dict[str, Any]) -> None:
        """Copies the state to the host and writes it in the background.

        It waits for the save before it, so that at most one is under way.
        """
        self.wait()
        items = {
            "trainable": state.trainable,
            "optimizer": state.optimizer._asdict(),
            "progress": dataclasses.asdict(progress),
        }
        if state.history is not None:
            items["history"] = state.history._asdict()
        with _undisturbed():  # or nobody would wait for what was begun
            self._pending = self._checkpointer.save_checkpointables_async(
                progress.step, items, custom_metadata={"config": config}
            )
            self._pending_step = progress.step

    def wait(self) -> None:
        """Returns when what was saved stands on the disk; raises what went wrong."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        """The state and progress of a step, placed as the arrays of `like` are.

        Its history is None where the checkpoint holds none of the shape of `like`.
        """
        wanted: dict[str, Any] = {
            "trainable": like.trainable,
            "optimizer": like.optimizer._asdict(),
        }
        path = files.join(self.folder, str(step))
        with _readable(path):
            held: Any = ocp.checkpointables_metadata(path).metadata
            ring = like.history and like.history._asdict()
            if ring and _shapes(held.get("history")) == _shapes(ring):
                wanted["history"] = ring
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
            )
            counts = dict.fromkeys(held["progress"], 0)
            items = self._checkpointer.load_checkpointables(step, abstract | {"progress": counts})
            history = History(**items["history"]) if "history" in items else None
            state = TrainState(items["trainable"], AdamState(**items["optimizer"]), history)
            progress = {name: int(value) for name, value in items["progress"].items()}
        return state, Progress(**progress)

    def restore_newest(self, like: TrainState, before: int | None = None) -> Restored | None:
        """The newest checkpoint, or the newest before a step."""
        found = [step for step in steps(self.folder) if before is None or step < before]
        return Restored(found[-1], *self.restore(found[-1], like)) if found else None

    def set_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint, so that nothing goes on from it."""
        path = files.join(self.folder, str(step))
        files.move(path, f"{path}.{why}")
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits for the last save and stops the writer."""
        self.wait()
        self._checkpointer.close()


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Says in one sentence that a checkpoint cannot be read; Orbax says it in any kind of error."""
    try:
        yield
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"{path}: this checkpoint cannot be read ({type(error).__name__}: {first}); it is "
            "damaged: move it away, and what uses it goes on from the one before it"
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets a Ctrl-C wait until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *signalled: arrived.append(signalled))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived and callable(before):
        before(*arrived[0])


def _shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in (arrays or {}).items()}


def steps(folder: str) -> list[int]:
    """The finished steps in a checkpoint folder, in order."""
    if not files.is_folder(folder):
        return []
    return sorted(int(name) for name in files.names(folder, r"\d+"))


class Trained(Mapping[str, np.ndarray]):
    """The trained weights of a finished step by address; each is read when it is asked for."""

    def __init__(self, folder: str, step: int):
        self.path = files.join(files.absolute(folder), str(step))
        with _readable(self.path):
            metadata: Any = ocp.checkpointables_metadata(self.path).metadata
            self.shapes: dict[str, tuple[int, ...]] = {
                address: tuple(array.shape) for address, array in metadata["trainable"].items()
            }

    def __getitem__(self, address: str) -> np.ndarray:
        wanted: dict[str, Any] = dict.fromkeys(self.shapes, ocp.PLACEHOLDER)
        wanted[address] = np.empty(self.shapes[address], np.float32)
        with _readable(self.path):
            items = ocp.load_checkpointables(self.path, {"trainable": wanted})
        return items["trainable"][address]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
