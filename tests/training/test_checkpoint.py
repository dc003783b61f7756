"""Checkpoints: only what was found whole is used, and what disturbs a save is told."""

import contextlib
import errno
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from astrollava_jax import files
from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training import checkpoint, manifest, stored
from astrollava_jax.training.checkpoint import Checkpoints, NotFinite, SaveFailed
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.steps import aside, spaced, steps
from astrollava_jax.training.stored import Trained

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


def restored(folder: Path, told: list[str] | None = None) -> checkpoint.Restored | None:
    return saved(folder, told=told).restore_newest(state())


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def data_file(step_folder: Path, item: str = "trainable") -> Path:
    """The largest file of an item."""
    found = (path for path in (step_folder / item).rglob("*") if path.is_file())
    return max(found, key=lambda path: path.stat().st_size)


def test_what_was_saved_comes_back_upon_another_mesh(tmp_path):
    saved(tmp_path, 3, 7)
    like = state(0, PartitionSpec())
    found = saved(tmp_path).restore_newest(like)
    assert found is not None and found.step == 7
    assert found.progress == Progress(step=7, position=7)
    assert found.state.optimizer.count == 7
    assert found.state.trainable[KERNEL].sharding == like.trainable[KERNEL].sharding
    assert np.array_equal(found.state.optimizer.mu[KERNEL], state(7).trainable[KERNEL])


def test_a_step_is_good_only_when_it_was_read_back(tmp_path, monkeypatch):
    read_back, seen = stored.read_back, []

    def slow(*arguments):
        seen.append((steps(str(tmp_path)), checkpoints.last_good))
        return read_back(*arguments)

    monkeypatch.setattr(stored, "read_back", slow)
    checkpoints = saved(tmp_path)
    checkpoints.save(state(3), Progress(step=3), {})
    checkpoints.wait()
    assert seen == [([], None)] and checkpoints.last_good == 3 and steps(str(tmp_path)) == [3]


def test_numbers_that_the_disk_changed_while_they_were_written_are_no_checkpoint(
    tmp_path, monkeypatch
):
    checkpoints = saved(tmp_path, 3)
    honest = stored.fingerprint
    monkeypatch.setattr(stored, "fingerprint", lambda *where: (honest(*where)[0] ^ 1, 0))
    checkpoints.save(state(5), Progress(step=5), {})
    with pytest.raises(SaveFailed, match=r"(?s)read back.*last good one is .*/3: mend"):
        checkpoints.wait()
    assert steps(str(tmp_path)) == [3] and aside(str(tmp_path)) == ["5.damaged-when-written"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, bad):
    checkpoints = saved(tmp_path, 3)
    with pytest.raises(NotFinite, match=r"(?s)step 4 .* good checkpoint is 3.*optimizer/mu"):
        checkpoints.save(state(4, fill=bad), Progress(step=4), {})
    checkpoints.close()
    assert os.listdir(tmp_path) == ["3"]


def test_a_damaged_step_is_set_aside_and_the_one_before_it_is_used(tmp_path):
    saved(tmp_path, 3, 7)
    flip(data_file(tmp_path / "7"))
    told: list[str] = []
    found = restored(tmp_path, told)
    assert found is not None and found.step == 3 and found.progress.position == 3
    assert aside(str(tmp_path)) == ["7.damaged-checksum"] and len(told) == 1
    assert told[0].startswith("DAMAGED CHECKPOINT: step 7") and "expected crc32c" in told[0]
    again = saved(tmp_path, 7)  # the same step is made again
    assert again.last_good == 7


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda step: os.truncate(data_file(step), 40), "size"),
        (lambda step: os.remove(data_file(step)), "missing"),
        (lambda step: flip(step / "manifest.0-of-1.json"), "manifest"),
        (lambda step: dangle(step / "manifest.0-of-1.json"), "manifest"),
    ],
)
def test_the_name_says_why_a_step_is_set_aside(tmp_path, damage, why):
    saved(tmp_path, 3, 7)
    damage(tmp_path / "7")
    found = restored(tmp_path)
    assert found is not None and found.step == 3
    assert aside(str(tmp_path)) == [f"7.damaged-{why}"]


def test_a_step_under_the_name_of_another_or_of_another_run_is_not_used(tmp_path):
    for run in ("ours", "theirs"):
        checkpoints = Checkpoints(str(tmp_path / run), keep=3, run=run)
        checkpoints.save(state(3), Progress(step=3), {})
        checkpoints.close()
    shutil.copytree(tmp_path / "ours" / "3", tmp_path / "ours" / "9")
    shutil.move(tmp_path / "theirs" / "3", tmp_path / "ours" / "5")
    told: list[str] = []
    ours = Checkpoints(str(tmp_path / "ours"), keep=3, tell=told.append, run="ours")
    found = ours.restore_newest(state())
    assert found is not None and found.step == 3
    assert aside(str(tmp_path / "ours")) == ["5.damaged-misplaced", "9.damaged-misplaced"]
    assert "expected step 9, found a copy of step 3" in told[0]
    assert "expected run ours, found a copy of run theirs" in told[1]


def test_what_changes_on_the_way_to_the_devices_is_seen(tmp_path, monkeypatch):
    saved(tmp_path, 3, 7)
    load = checkpoint.ocp.load_checkpointables

    def wrong(path, *arguments):
        found = load(path, *arguments)
        if path.endswith("7"):
            found["trainable"][KERNEL] = found["trainable"][KERNEL].at[2, 3].add(1e-6)
        return found

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", wrong)
    found = restored(tmp_path)
    assert found is not None and found.step == 3
    assert aside(str(tmp_path)) == ["7.damaged-fingerprint"]


def test_a_step_without_a_manifest_is_not_trusted(tmp_path):
    saved(tmp_path, 3, 5, 7)
    for step in ("3", "7"):
        os.remove(tmp_path / step / "manifest.0-of-1.json")
    told: list[str] = []
    checkpoints = saved(tmp_path, told=told)
    assert steps(str(tmp_path)) == [5] and len(told) == 2
    assert aside(str(tmp_path)) == ["3.untrusted", "7.unfinished"]
    found = checkpoints.restore_newest(state())
    assert found is not None and found.step == 5
    saved(tmp_path, 6)  # another good one: what was unfinished is of no use to anybody
    assert aside(str(tmp_path)) == ["3.untrusted"]


def test_what_killed_processes_left_is_removed(tmp_path):
    saved(tmp_path, 3)
    for name in ("5.orbax-checkpoint-tmp", "1.removing", ".x.01234567.part"):
        (tmp_path / name / "trainable").mkdir(parents=True)
    (tmp_path / "notes").mkdir()  # not ours
    saved(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["3", "notes"]


def test_the_newest_stay_and_one_for_every_so_many_seconds(tmp_path, monkeypatch):
    now = iter(range(1000, 2000, 10))
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(time=lambda: float(next(now))))
    checkpoints = Checkpoints(str(tmp_path), keep=2, keep_seconds=30.0, tell=print)
    for step in range(1, 9):
        checkpoints.save(state(step), Progress(step=step), {})
    checkpoints.close()
    times = {
        step: manifest.read(str(tmp_path / str(step))).saved_at for step in steps(str(tmp_path))
    }
    assert list(times) == [1, 4, 7, 8] and times[4] - times[1] == 30
    assert spaced({1: 0, 2: 29, 3: 31, 4: 60, 5: 61}, 30.0) == [1, 3, 5]


def test_a_step_that_stands_is_not_saved_twice(tmp_path):
    checkpoints = saved(tmp_path, 3)
    before = (tmp_path / "3" / "manifest.0-of-1.json").stat().st_ino
    checkpoints.save(state(3), Progress(step=3), {})
    checkpoints.close()
    assert (tmp_path / "3" / "manifest.0-of-1.json").stat().st_ino == before


def test_a_step_passed_over_is_replaced_when_it_is_made_again(tmp_path):
    checkpoints = saved(tmp_path, 3, 7)
    found = checkpoints.restore_newest(state(), before=7)
    assert found is not None and found.step == 3
    checkpoints.save(state(8), Progress(step=7, position=9), {})
    checkpoints.close()
    assert aside(str(tmp_path)) == ["7.replaced"]
    again = restored(tmp_path)
    assert again is not None and again.progress.position == 9


def test_an_item_that_an_older_step_has_not_is_zeros(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "as_items", lambda state: {"trainable": state.trainable})
        saved(tmp_path, 3)
    found = restored(tmp_path)
    assert found is not None and found.step == 3
    assert np.array_equal(found.state.trainable[KERNEL], state(3).trainable[KERNEL])
    moment, like = found.state.optimizer.mu[KERNEL], state().optimizer.mu[KERNEL]
    assert not moment.any() and moment.sharding == like.sharding and moment.dtype == like.dtype


def test_a_reader_verifies_before_it_gives_anything(tmp_path):
    saved(tmp_path, 3, 7)
    assert np.array_equal(Trained(str(tmp_path), 7, [KERNEL])[KERNEL], state(7).trainable[KERNEL])
    flip(data_file(tmp_path / "7"))
    with pytest.raises(ValueError, match=rf"7: .* is damaged; .*: {tmp_path}/3\n  .*crc32c"):
        Trained(str(tmp_path), 7, [KERNEL])[KERNEL]
    assert steps(str(tmp_path)) == [3, 7]  # a reader moves nothing


def test_a_reader_needs_only_the_weights(tmp_path):
    saved(tmp_path, 7)
    flip(data_file(tmp_path / "7", "optimizer"))
    assert len(Trained(str(tmp_path), 7, [KERNEL])[KERNEL]) == 16


def orbax_may_stumble(test):
    """Threads of Orbax that are still at work when its event loop is closed complain of that."""
    for kind in ("PytestUnhandledThreadExceptionWarning", "PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::pytest.{kind}")(test)
    return test


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system of 300 kB; skips where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only an administrator may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@orbax_may_stumble
def test_a_full_disk_is_told_and_the_last_good_step_stays(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        checkpoints = saved(disk, 3)
        ballast = disk / "ballast"
        free = os.statvfs(disk)
        ballast.write_bytes(bytes((free.f_bavail - 4) * free.f_bsize))
        checkpoints.save(state(5), Progress(step=5), {})
        with pytest.raises(
            SaveFailed, match=rf"(?i)no space left.*last good one is {disk}/3: mend"
        ):
            checkpoints.wait()
        assert sorted(os.listdir(disk)) == ["3", "ballast"]
        ballast.unlink()
        checkpoints.save(state(6), Progress(step=6), {})
        checkpoints.close()
        assert steps(str(disk)) == [3, 6]


@orbax_may_stumble
def test_a_disk_that_only_reads_is_told_and_the_last_good_step_stays(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        checkpoints = saved(disk, 3)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(SaveFailed, match=rf"Read-only.*last good one is {disk}/3: mend"):
            checkpoints.save(state(5), Progress(step=5), {})
            checkpoints.wait()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert os.listdir(disk) == ["3"]
        found = restored(disk)
        assert found is not None and found.step == 3


@orbax_may_stumble
def test_a_disk_that_vanishes_is_told(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        checkpoints = saved(disk / "run", 3)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=True)
        try:
            with pytest.raises(SaveFailed, match=r"could not be saved.*the last good one is"):
                checkpoints.save(state(5), Progress(step=5), {})
                checkpoints.wait()
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        found = restored(disk / "run")
        assert found is not None and found.step == 3


def test_a_manifest_that_cannot_be_written_leaves_no_step(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 3)
    write = files.write_bytes

    def full(path, content):
        if "manifest" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", full)
    checkpoints.save(state(5), Progress(step=5), {})
    with pytest.raises(SaveFailed, match="No space left"):
        checkpoints.close()
    assert os.listdir(tmp_path) == ["3"]


def test_old_steps_that_cannot_be_removed_do_not_end_a_run(tmp_path, monkeypatch):
    told: list[str] = []
    checkpoints = saved(tmp_path, 1, 3, 5, told=told)

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "move", failing)
    checkpoints.save(state(7), Progress(step=7), {})
    checkpoints.close()
    assert checkpoints.last_good == 7 and "could not be removed" in told[0]


def test_a_save_returns_before_it_is_finished(tmp_path, monkeypatch):
    read_back = stored.read_back
    monkeypatch.setattr(stored, "read_back", lambda *a: time.sleep(0.5) or read_back(*a))
    checkpoints = saved(tmp_path, 3)
    checkpoints.save(state(5), Progress(step=5), {})
    assert checkpoints.last_good == 3
    checkpoints.close()
    assert checkpoints.last_good == 5
