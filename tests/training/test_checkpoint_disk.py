"""Disks that are full, only read, vanish or fail: told, and the last good checkpoint stays."""

import asyncio
import errno
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_checkpoints import restored, saved, state
from small_disk import orbax_may_stumble, small_disk

from astrollava_jax import files
from astrollava_jax.training import storage
from astrollava_jax.training.checkpoint import SaveFailed
from astrollava_jax.training.state import Progress
from astrollava_jax.training.steps import steps


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


def test_only_what_is_told_anyway_is_not_told_twice(monkeypatch, caplog):
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(str(found.exc_value)))
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    storage.tell_once()
    storage.tell_once()
    for word, number in (("_SignalingThread.run() raised", errno.EIO),
                         ("_SignalingThread.run() raised", errno.ENOSPC),
                         ("a thing of its own", errno.ENOSPC)):  # fmt: skip
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            logging.getLogger("absl").exception(f"{word}: %d", number)
    assert [record.args for record in caplog.records] == [(errno.EIO,), (errno.ENOSPC,)]
    assert caplog.records[1].msg.startswith("a thing of its own")

    loop = asyncio.new_event_loop()
    loop.close()
    for fault in (lambda: loop.call_soon_threadsafe(print), lambda: loop.call_soon(print)):
        try:
            fault()
        except RuntimeError as error:
            trace = error.__traceback__
            assert trace is not None
            called_from_c = trace.tb_next.tb_next
            sys.unraisablehook(SimpleNamespace(exc_value=error, exc_traceback=called_from_c))
    assert told == ["Event loop is closed"], "that of a call from the loop's own thread"
