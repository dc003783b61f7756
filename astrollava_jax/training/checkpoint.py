"""Checkpoints: trainable weights, moments, progress and config as one unit, written by Orbax.

A checkpoint holds named items, so that an item added later does not break older ones. Frozen
weights are not in it: the run names the files that give them.

Every array has a fingerprint that is taken on the devices. It is compared with what stands in the
files before a step is trusted, and on the devices again after a restore.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from astrollava_jax import files
from astrollava_jax.sharding import agree, gather
from astrollava_jax.training import fingerprint, manifest, save_errors, steps, stored, writing
from astrollava_jax.training.fingerprint import Fingerprint
from astrollava_jax.training.items import as_items, as_state, by_name, zeros
from astrollava_jax.training.save_errors import NotFinite as NotFinite
from astrollava_jax.training.save_errors import SaveFailed as SaveFailed
from astrollava_jax.training.state import Progress, TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    step: int
    state: TrainState
    progress: Progress


@dataclasses.dataclass
class _Pending:
    """A save that is under way."""

    step: int
    thread: threading.Thread
    error: BaseException | None = None


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`.

    All processes of a run call every method, in the same order. What killed processes left behind
    is removed at the start: the caller holds the run's lock.

    Args:
        folder: where they are.
        keep: so many of the newest good ones stay, at least 2.
        keep_seconds: one more stays for good for every so many seconds.
        tell: is given what a person should know, as one text.
        run: what tells this run from others; a step of another one is not used.
        lost: says, in process 0, why nothing can be saved there any more, or None.
        good: is told, in process 0, of each step that was found whole.
    """

    def __init__(
        self,
        folder: str,
        keep: int,
        keep_seconds: float | None = None,
        tell: Callable[[str], None] = print,
        run: str | None = None,
        lost: Callable[[], str | None] = lambda: None,
        good: Callable[[int], None] = lambda step: None,
    ):
        assert keep >= 2, "a single good checkpoint is lost with one flipped bit"
        self.folder, self._keep, self._keep_seconds = files.absolute(folder), keep, keep_seconds
        self._tell, self._run, self._lost, self._good = tell, run, lost, good
        self._pending: _Pending | None = None
        self.last_good: int | None = None
        """The newest step found whole."""
        if jax.process_index() == 0:
            files.make_folder(self.folder)
            steps.clean(self.folder, tell)
        gather(None)  # nobody looks before it is clean

    def prepare(self, state: TrainState) -> None:
        """Compiles what a save needs, so that the first one takes no longer than the others."""
        fingerprint.on_devices(by_name(as_items(state)))

    def save(self, state: TrainState, progress: Progress, config: dict[str, Any]) -> None:
        """Copies the state to the host; the rest happens in the background.

        It waits for the save before it, so that at most one is under way.

        Raises:
            NotFinite: if a number is not finite; nothing is written.
            SaveFailed: if it cannot begin, the one before it failed, or the folder is lost.
        """
        items = as_items(state)
        prints, bad = fingerprint.on_devices(by_name(items))
        if bad:
            raise save_errors.not_finite(progress.step, bad, self.last_good)
        self.wait()
        self._check_there()
        self._tell_of_a_loss()
        if progress.step == self.last_good:
            return
        if any(gather(files.exists(self._path(progress.step)))):
            self.set_aside(progress.step, "replaced")
        counts = dataclasses.asdict(progress)
        self._begin(progress.step, items | {"progress": counts}, config, prints)

    def wait(self) -> None:
        """Returns when what was saved was found whole on the disk; raises SaveFailed if not."""
        if (pending := self._pending) is None:
            return
        pending.thread.join()
        self._pending = None
        if pending.error is not None:
            raise self._failed(pending.step, pending.error) from pending.error

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()

    def restore_newest(self, like: TrainState, before: int | None = None) -> Restored | None:
        """The newest good step, placed as the arrays of `like` are; None if there is none.

        A step that is not what was written is set aside under a name that says why, and the one
        before it is tried. An item that an older step has not is zeros.

        Args:
            like: arrays, or shapes with shardings.
            before: look only at steps below this one.

        Raises:
            ValueError: if a step is as it was written and cannot be read nevertheless.
            SaveFailed: if the folder is lost.
        """
        self._check_there()
        for step in reversed(steps.steps(self.folder)):
            if before is not None and step >= before:
                continue
            found = self._faults(step)
            restored = None
            if not found:
                restored, found = self._load(step, like)
            if restored is not None:
                self._trust(step)
                return restored
            target = self.set_aside(step, f"damaged-{manifest.kind(found)}")
            self._tell(
                f"DAMAGED CHECKPOINT: step {step} is not what was written; it is not used and "
                f"stands in {target}; the one before it is tried\n  " + "\n  ".join(found)
            )
        return None

    def set_aside(self, step: int, why: str) -> str:
        """Renames a step to `<step>.<why>`, so that nothing reads it; returns where it stands."""
        self.wait()
        target = ""
        if jax.process_index() == 0:
            target = steps.set_aside(self.folder, step, why)
        if self.last_good == step:
            self.last_good = None
        return agree(target)

    def _path(self, step: int) -> str:
        return files.join(self.folder, str(step))

    def _begin(
        self, step: int, items: dict[str, Any], config: dict[str, Any],
        prints: Mapping[str, Fingerprint],
    ) -> None:  # fmt: skip
        """Starts to write, and the thread that finishes it."""
        try:
            response = writing.begin(self._path(step), items, config)
        except Exception as error:
            self._put_away(step)
            raise self._failed(step, error) from error
        arrays = by_name({name: tree for name, tree in items.items() if name != "progress"})
        sizes = {address: array.nbytes for address, array in arrays.items()}
        thread = threading.Thread(
            target=self._finish,
            args=(step, response, prints, sizes, items["progress"]),
            name=f"checkpoint {step}",
            daemon=True,  # a disk that hangs must not keep a process that ends
        )
        self._pending = _Pending(step, thread)
        thread.start()

    def _finish(
        self, step: int, response: Any, prints: Mapping[str, Fingerprint], sizes: dict[str, int],
        progress: dict[str, int],
    ) -> None:  # fmt: skip
        """Waits for Orbax, reads back, publishes the manifest, removes what is too old."""
        assert self._pending is not None
        path, process, processes = self._path(step), jax.process_index(), jax.process_count()
        try:
            response.result()
            differing = stored.read_back(path, prints, manifest.share(sizes, process, processes))
            if (lost := self.lost()) is not None:
                raise lost
            manifest.write_part(
                path, process, processes, arrays=prints, progress=progress,
                saved_at=int(time.time()), run=self._run, faults=differing,
            )  # fmt: skip
            manifest.await_parts(path, processes)
            manifest.read(path)
            self._trust(step)
            if process == 0:
                with self._telling("old checkpoints could not be removed"):
                    steps.prune(self.folder, self._keep, self._keep_seconds)
        except BaseException as error:
            self._pending.error = error
            if self.last_good != step:
                self._put_away(step)

    def _put_away(self, step: int) -> None:
        """Leaves nothing of a save that failed, unless who knows whose folder it is by now."""
        if jax.process_index() == 0 and self.lost() is None:
            with contextlib.suppress(OSError):
                steps.put_away(self.folder, step)

    def _trust(self, step: int) -> None:
        """From now on, this is the step to go on from."""
        self.last_good = step
        if jax.process_index() == 0:
            with self._telling(f"it could not be noted that step {step} is good"):
                self._good(step)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """A fault of the disk inside is told, and ends nothing: the step is good nevertheless."""
        try:
            yield
        except OSError as error:
            self._tell(f"{self.folder}: {what}: {error}")

    def lost(self) -> SaveFailed | None:
        """What to say where the folder is lost while the run goes on; only process 0 knows."""
        why = self._lost()
        return None if why is None else save_errors.nowhere(why, self.last_good)

    def _check_there(self) -> None:
        """Raises SaveFailed, in all processes, if the folder is lost."""
        if told := agree(str(self.lost() or "")):
            raise SaveFailed(told)

    def _tell_of_a_loss(self) -> None:
        """Forgets the good step if somebody has removed it: there is none until the next is."""
        if self.last_good is None or agree(files.exists(self._path(self.last_good))):
            return
        self._tell(
            f"CHECKPOINT LOST: {self._path(self.last_good)} was good, and was removed while the "
            "run goes on; until the next one is good there may be none to go on from"
        )
        self.last_good = None

    def _failed(self, step: int, error: BaseException) -> SaveFailed:
        good = None if self.last_good is None else self._path(self.last_good)
        return self.lost() or save_errors.not_written(self._path(step), error, good)

    def _faults(self, step: int) -> list[str]:
        """What of a step's files is not as it was written; each process reads its share."""
        process, processes = jax.process_index(), jax.process_count()
        own = manifest.faults(self._path(step), process, processes, run=self._run)
        return [line for lines in gather(own) for line in lines]

    def _load(self, step: int, like: TrainState) -> tuple[Restored | None, list[str]]:
        """A step whose files are whole, unless what arrives on the devices is something else."""
        path = self._path(step)
        written = manifest.read(path)
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), as_items(like)
        )
        held = {name for name in wanted if stored.holds(path, name, wanted[name])}
        with stored.readable(path):
            items = ocp.load_checkpointables(
                path, {name: wanted[name] for name in held} | {"progress": None}
            )
        progress = {name: int(count) for name, count in items.pop("progress").items()}
        found = fingerprint.on_devices(by_name(items))[0]
        differing = [
            f"{path}: {name}: expected fingerprint {written.arrays.get(name)}, found {now}"
            for name, now in found.items()
            if written.arrays.get(name) != now
        ]
        if progress != written.progress:
            differing.append(f"{path}: expected progress {written.progress}, found {progress}")
        if differing:
            return None, differing
        items |= {name: zeros(wanted[name]) for name in wanted if name not in held}
        known = {field.name for field in dataclasses.fields(Progress)}
        at = Progress(**{name: count for name, count in progress.items() if name in known})
        return Restored(step, as_state(like, items), at), []
