"""Files: many read at once, and what is seen while they are published."""

import contextlib
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from astrollava_jax import files, ranges


@pytest.fixture
def shards(tmp_path):
    """Twenty files of 1,000 bytes; every byte is the file's number."""
    paths = [tmp_path / f"shard-{number}" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return paths


def still_open(paths) -> list[int]:
    """The places in `paths` of the files that this process has open."""
    found = set()
    for descriptor in range(1024):
        with contextlib.suppress(OSError):
            found.add(os.fstat(descriptor).st_ino)
    return [number for number, path in enumerate(paths) if path.stat().st_ino in found]


def test_a_reader_reads_ranges_and_what_the_end_leaves(shards):
    reader = files.RangeReader(shards[7])
    assert reader.read(0, 3) == b"\7\7\7"
    assert reader.read(998, 10) == b"\7\7"
    assert reader.read(1000, 1) == b""
    again = pickle.loads(pickle.dumps(reader))
    assert (again.path, again.read(5, 2)) == (str(shards[7]), b"\7\7")


def test_only_the_last_readers_keep_their_files_open(shards, monkeypatch):
    monkeypatch.setattr(ranges, "_OPEN_READERS", 3)
    readers = [files.RangeReader(path) for path in shards]
    assert still_open(shards) == []
    for number in (0, 1, 2, 0, 3):
        readers[number].read(0, 1)
    assert still_open(shards) == [0, 2, 3]
    readers[2].close()
    assert still_open(shards) == [0, 3]
    del readers
    assert still_open(shards) == []


def test_a_file_is_not_closed_while_a_thread_reads_it(shards, monkeypatch):
    monkeypatch.setattr(ranges, "_OPEN_READERS", 1)
    first, second = (files.RangeReader(path) for path in shards[:2])
    pread = os.pread

    def interrupted(descriptor: int, length: int, offset: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        assert second.read(0, 2) == b"\1\1"
        first.close()
        assert still_open(shards) == [0, 1]
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", interrupted)
    assert first.read(0, 2) == b"\0\0"
    assert still_open(shards) == [1]


def test_threads_read_from_more_files_than_stay_open(shards, monkeypatch):
    monkeypatch.setattr(ranges, "_OPEN_READERS", 3)
    readers = [files.RangeReader(path) for path in shards]
    numbers = np.random.default_rng(0).integers(0, len(shards), 4000).tolist()
    with ThreadPoolExecutor(8) as threads:
        for number, content in zip(numbers, threads.map(lambda n: readers[n].read(n, 9), numbers)):
            assert content == bytes([number]) * 9
    assert len(still_open(shards)) == 3


def test_a_file_that_took_anothers_place_is_read_by_a_new_reader(shards):
    old = files.RangeReader(shards[0])
    assert old.read(0, 1) == b"\0"
    files.write_bytes(shards[0], b"new")
    assert files.RangeReader(shards[0]).read(0, 3) == b"new"


def test_what_a_killed_process_was_publishing_is_not_listed(tmp_path):
    lines = [
        "import os, signal, sys",
        "from astrollava_jax import files",
        "folder = sys.argv[1]",
        "files.write_text(files.join(folder, '.kept.part'), 'whole')",
        "with files.publish(files.join(folder, 'facts.json')) as handle:",
        "    with files.publish_folder(files.join(folder, '3')) as inside:",
        "        files.write_text(files.join(inside, 'state'), 'half')",
        "        os.kill(os.getpid(), signal.SIGKILL)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), tmp_path])
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 3
    assert files.names(tmp_path) == [".kept.part"]
    assert files.names(tmp_path, ".*3.*") == []


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_appears_whole_where_a_link_leads(tmp_path, there):
    real, link = tmp_path / "disk" / "out", tmp_path / "link"
    real.parent.mkdir()
    if there:
        real.mkdir()
    link.symlink_to(real)
    with files.publish_folder(link) as inside:
        assert os.path.dirname(inside) == str(real.parent)  # on the same disk
        files.write_text(files.join(inside, "a"), "b")
        assert files.names(real.parent) == ["out"] * there
    assert link.is_symlink() and files.read_text(real / "a") == "b"
    assert os.listdir(real.parent) == ["out"]
    with pytest.raises(FileExistsError, match="link exists: choose another name"):
        with files.publish_folder(link):
            pytest.fail("something was written")


def test_an_empty_folder_that_cannot_be_replaced_is_refused_at_once(tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    mount.mkdir()
    replace = os.replace

    def busy(source: str, target: str) -> None:
        if str(mount) in (source, target):
            raise OSError(errno.EBUSY, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(FileExistsError, match=r"replaced \(Device or resource busy\).*name a new"):
        with files.publish_folder(mount):
            pytest.fail("something was written")
    assert os.listdir(tmp_path) == ["mount"]
    with files.publish_folder(mount / "new"):
        pass
    assert os.listdir(mount) == ["new"]


def test_all_files_of_a_folder_are_named_but_what_is_being_published(tmp_path):
    for name in ("b", "a/d/x", "a/c"):
        files.write_text(tmp_path / name, "")
    (tmp_path / "a" / ".c.01234567.part").write_bytes(b"")
    assert files.walk(tmp_path) == ["a/c", "a/d/x", "b"]
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert files.walk(tmp_path) == ["a/c", "a/d/x", "a/loop", "b"]
    files.remove_unfinished(tmp_path / "a")
    assert os.listdir(tmp_path / "a") != [] and not list(tmp_path.rglob(".*"))


def put_another_in_its_place(folder: Path) -> None:
    shutil.copytree(folder, f"{folder}.copy")
    folder.rename(f"{folder}.old")
    Path(f"{folder}.copy").rename(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (shutil.rmtree, "was removed or moved away"),
        (lambda folder: folder.rename(f"{folder}.old"), "was removed or moved away"),
        (put_another_in_its_place, "was replaced by another one"),
    ],
)
def test_a_lock_says_when_it_is_not_at_its_path_any_more(change, why, tmp_path):
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    with files.locked(lock) as displaced:
        assert displaced() is None
        change(lock.parent)
        told = displaced()
        assert told is not None and told.startswith(why)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_lock_on_a_mount_that_vanished_says_so(number, tmp_path, monkeypatch):
    def vanished(path):
        raise OSError(number, os.strerror(number))

    with files.locked(tmp_path / ".lock") as displaced:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", vanished)
            assert displaced() == f"cannot be reached any more ({os.strerror(number)})"
        assert displaced() is None
