"""Storage that fails while a run reads is tried again, and then ends the run: no record is lost."""

import errno
import multiprocessing
import os
import pickle
import signal
import time

import pytest
import small_set

from astrollava_jax import files
from astrollava_jax.cli import main as main_module
from astrollava_jax.cli import train as cli_train
from astrollava_jax.data import lengths as lengths_module
from astrollava_jax.data.faults import RecordError, StorageError
from astrollava_jax.data.image import ImageError
from astrollava_jax.data.lengths import measure
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.data.samples import Reader
from astrollava_jax.data.workers import WorkerDied


@pytest.fixture
def reader(tmp_path) -> Reader:
    """Forty records in three shards, read without long pauses."""
    made = small_set.reader(tmp_path / "sky")
    made.parts[0].source.pauses = (0.01, 0.02)
    return made


@pytest.fixture
def plan(reader, tmp_path) -> RunPlan:
    mixture = Mixture([part.source for part in reader.parts], [1.0], shuffle=False)
    lengths = measure(reader, tmp_path / "plan")
    return RunPlan(mixture, lengths, BatchConfig(samples=8, length=16), epochs=1)


def shard(reader: Reader, number: int) -> str:
    source = reader.parts[0].source
    return os.path.join(source.folder, source.shards[number])


def forget(reader: Reader) -> None:
    """Closes the shards: what is open stays readable even when its name is gone."""
    for one in reader.parts[0].source._readers:
        one.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_a_short_fault_is_waited_for(number, reader, monkeypatch, caplog):
    source, expected = reader.parts[0].source, reader.parts[0].source[20]
    real, failing = files.RangeReader.read, [2]

    def read(self, offset, length):
        if failing[0]:
            failing[0] -= 1
            raise OSError(number, os.strerror(number), self.path)
        return real(self, offset, length)

    monkeypatch.setattr(files.RangeReader, "read", read)
    assert source[20] == expected
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"{shard(reader, 1)}: {os.strerror(number)}; again in")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_lasting_fault_ends_the_run_and_is_no_bad_record(number, reader, plan, monkeypatch):
    def read(self, offset, length):
        raise OSError(number, os.strerror(number), self.path)

    monkeypatch.setattr(files.RangeReader, "read", read)
    with Pipeline(plan, reader).batches() as batches:
        with pytest.raises(
            StorageError, match=r"tried 3 times in 0 s.*start the run again"
        ) as said:
            next(batches)
    assert shard(reader, 0) in str(said.value) and os.strerror(number) in str(said.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_taken_away_is_named(workers, reader, plan):
    forget(reader)
    os.rename(shard(reader, 1), shard(reader, 1) + ".away")
    with Pipeline(plan, reader, workers=workers).batches() as batches:
        assert not next(batches).faults and not next(batches).faults  # the first shard's 16
        with pytest.raises(FileNotFoundError, match="00001-of-00003: No such file"):
            next(batches)
    os.rename(shard(reader, 1) + ".away", shard(reader, 1))
    with Pipeline(plan, reader).batches(2) as batches:
        rest = list(batches)
    assert [name for step in rest for name in step.records] == [f"sky-{n}" for n in range(16, 40)]
    assert not any(step.faults for step in rest)


def test_a_mount_that_vanishes_is_another_thing_than_a_missing_file(reader, plan):
    """Its folder is then an empty one."""
    folder = reader.parts[0].source.folder
    forget(reader)
    os.rename(folder, folder + "-away")
    for _ in range(2):
        with Pipeline(plan, reader).batches() as batches:
            with pytest.raises(StorageError, match="00000-of-00003: No such file"):
                next(batches)
        os.makedirs(folder, exist_ok=True)
    os.rmdir(folder)
    os.rename(folder + "-away", folder)
    with Pipeline(plan, reader).batches() as batches:
        assert len(list(batches)) == plan.total_steps


def test_a_shard_that_is_cut_short_under_way_ends_the_run(reader, plan):
    os.truncate(shard(reader, 1), os.path.getsize(shard(reader, 1)) - 10)
    with Pipeline(plan, reader).batches(3) as batches:
        with pytest.raises(
            StorageError, match="ends 10 bytes too early; it was whole at the start"
        ):
            next(batches)


def test_lengths_are_not_measured_of_storage_that_fails(reader, tmp_path, monkeypatch):
    def read(self, offset, length):
        if offset > 0:
            raise OSError(errno.EIO, "Input/output error", self.path)
        return real(self, offset, length)

    real = files.RangeReader.read
    monkeypatch.setattr(files.RangeReader, "read", read)
    with pytest.raises(StorageError):
        measure(reader, tmp_path / "other")
    assert not os.path.exists(tmp_path / "other")


def test_errors_travel_between_processes():
    for error in (StorageError("a: gone"), ImageError("no picture"), RecordError("who?", "role")):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error) and str(back) == str(error)
        assert getattr(back, "kind", None) == getattr(error, "kind", None)


def test_what_can_come_back_is_resumable(monkeypatch, capsys):
    for error in (StorageError("a: gone"), WorkerDied("exit code -9")):
        monkeypatch.setattr(cli_train, "main", lambda argv, error=error: _raise(error))
        assert main_module._run(cli_train, []) == main_module.RESUMABLE
        assert str(error) in capsys.readouterr().err


def _raise(error: Exception) -> None:
    raise error


# Workers that die


def test_a_worker_that_is_killed_ends_the_run_soon(tmp_path):
    """Also while it waits for room in the pipe, with rows that are longer than the pipe."""
    reader = small_set.reader(tmp_path / "sky", length=8192)
    mixture = Mixture([part.source for part in reader.parts], [1.0])
    lengths = measure(reader, tmp_path / "plan")
    batch = BatchConfig(samples=8, length=8192, packing=False)
    plan = RunPlan(mixture, lengths, batch, epochs=40)
    with Pipeline(plan, reader, workers=2).batches() as batches:
        next(batches)
        (victim, *_) = multiprocessing.active_children()
        assert victim.pid is not None
        time.sleep(1)  # now all that it may make ahead is made
        os.kill(victim.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(WorkerDied, match=r"exit code -9.*memory"):
            for _ in batches:
                pass
    assert time.monotonic() - begun < 20
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_measuring_is_told(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "PARALLEL_FROM", 1)
    monkeypatch.setattr(lengths_module, "_begin_worker", _die)
    with pytest.raises(WorkerDied, match="while records were measured"):
        measure(reader, tmp_path / "other", workers=1)


def _die(reader: Reader) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
