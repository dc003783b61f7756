"""How runs begin, and where they live: nothing begins anew unasked, nothing is saved nowhere."""

import contextlib
import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import small_run
from small_run import STEPS

from astrollava_jax import checksums
from astrollava_jax.cli.main import COMPLETE, MISTAKE, RESUMABLE, main
from astrollava_jax.run import directory, held
from astrollava_jax.run import train as training
from astrollava_jax.training.metrics import JsonLines
from astrollava_jax.training.preemption import Preempted

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def content(folder: Path) -> dict[str, bytes]:
    found = {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def only_begin(monkeypatch):
    """A run begins, and no more."""
    monkeypatch.setattr(training, "_run", lambda *_: None)


@pytest.fixture
def disturbed(monkeypatch):
    """Does something before the sixth step, when checkpoint 4 is good."""

    def at_the_sixth_step(out: Path, action) -> None:
        run_loop, calls = training.run_loop, iter(range(STEPS))

        def loop(step, *arguments):
            def disturbed(*inputs):
                if next(calls) == 5:
                    end = time.monotonic() + 60
                    while held.last_good(str(out)) != 4 and time.monotonic() < end:
                        time.sleep(0.01)
                    action(out)
                return step(*inputs)

            return run_loop(disturbed, *arguments)

        monkeypatch.setattr(training, "run_loop", loop)

    return at_the_sixth_step


def empty(out: Path) -> None:
    """What `rm -r out/*` does: what begins with a dot stays."""
    for path in out.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (shutil.rmtree, "was removed or moved away, or what it lies on is not mounted any more"),
        (empty, "was emptied: base.json is gone"),
    ],
)
def test_a_run_whose_directory_is_removed_does_not_end_as_if_all_were_well(
    action, why, stage1, tmp_path, capsys, disturbed
):
    out = tmp_path / "run"
    disturbed(out, action)
    assert main(["train", stage1.file, "--out", str(out), "--evaluate", "null"]) == MISTAKE
    said = capsys.readouterr()
    assert f"{out}: this run directory {why}, while the run went on" in said.err
    assert "nothing can be saved there, and checkpoint 4 was the last good" in said.err
    assert "Traceback" not in said.err and "complete" not in said.out
    assert not out.exists() or os.listdir(out) == [".lock"], "nothing is made anew"


def test_the_directory_of_another_run_in_the_place_of_its_own_is_not_touched(
    stage1, tmp_path, capsys, disturbed
):
    out = tmp_path / "run"

    def replace(out: Path) -> None:
        out.rename(tmp_path / "ours")
        shutil.copytree(stage1.out, out)

    disturbed(out, replace)
    assert main(["train", stage1.file, "--out", str(out), "--evaluate", "null"]) == MISTAKE
    assert f"{out}: this run directory was replaced by another one" in capsys.readouterr().err
    assert content(out) == content(stage1.out)
    assert directory.finished_steps(str(tmp_path / "ours")) == [4]


def test_a_mount_that_vanishes_is_told_where_the_log_meets_it_first(
    stage1, tmp_path, capsys, disturbed, monkeypatch
):
    stale, stat = OSError(errno.ESTALE, os.strerror(errno.ESTALE)), os.stat

    def vanish(out: Path) -> None:
        def stat_of_what_is_left(path, *arguments, **how):
            if str(path) == f"{out}/.lock":
                raise stale
            return stat(path, *arguments, **how)

        def write(log, facts):
            raise stale

        monkeypatch.setattr(os, "stat", stat_of_what_is_left)
        monkeypatch.setattr(JsonLines, "write", write)

    out = tmp_path / "run"
    disturbed(out, vanish)
    assert main(["train", stage1.file, "--out", str(out), "--evaluate", "null"]) == MISTAKE
    said = capsys.readouterr().err
    assert f"{out}: this run directory cannot be reached any more (Stale file handle)" in said
    assert "checkpoint 4 was the last good" in said and "Traceback" not in said


def test_the_directory_of_a_run_that_has_become_another_run_s_is_lost(tmp_path):
    folder = tmp_path / "run"
    with held.alone(str(folder)) as displaced:
        (folder / "base.json").write_text(json.dumps({"format": 1, "run": "ours"}))
        assert held.lost(str(folder), "ours", displaced) is None
        said = held.lost(str(folder), "theirs", displaced)
        assert (
            said == f"{folder}: this run directory belongs to another run now, while the run "
            "went on"
        )
        (folder / "base.json").write_text("{")
        said = held.lost(str(folder), "ours", displaced)
        assert said is not None and "cannot be read any more" in said


def unlinked(folder: Path) -> None:
    """The checkpoints lay on another disk, which is not mounted."""
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def half(folder: Path) -> None:
    """Rests of saves and removals are no steps."""
    (folder / "8").rename(folder / "8.unfinished")
    (folder / "4").rename(folder / "4.removing")


def without_manifests(folder: Path) -> None:
    for step in ("4", "8"):
        (folder / step / "manifest.0-of-1.json").unlink()


def no_folders(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "take_away", [shutil.rmtree, no_folders, unlinked, half, without_manifests]
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(
    take_away, how, stage1, tmp_path, capsys, only_begin
):
    out = tmp_path / "run"
    shutil.copytree(stage1.out, out)
    take_away(out / "checkpoints")
    before = content(out)
    assert main(["train", stage1.file, "--out", str(out), *how]) == MISTAKE
    said = capsys.readouterr().err
    assert f"{out}: checkpoint 8 was good, but no good one is left in {out}/checkpoints" in said
    assert "Put them back" in said and "choose another `out`" in said
    assert content(out) == before


def test_a_run_whose_checkpoints_are_all_set_aside_begins_again_when_it_is_asked_to(
    stage1, tmp_path, capsys, only_begin
):
    out = tmp_path / "run"
    shutil.copytree(stage1.out, out)
    for step, why in (("4", "damaged-size"), ("8", "damaged-checksum")):
        (out / "checkpoints" / step).rename(out / "checkpoints" / f"{step}.{why}")
    before = directory.run_name(str(out))
    assert main(["train", stage1.file, "--out", str(out)]) == COMPLETE
    assert f"{out}: this run has no good checkpoint, and begins again" in capsys.readouterr().out
    assert directory.run_name(str(out)) != before and held.last_good(str(out)) is None


def test_a_start_that_was_cut_short_begins_again_and_says_so(
    stage1, tmp_path, capsys, only_begin, monkeypatch
):
    """Also one that was cut short while it began for the second time."""
    begins = "this run has no good checkpoint, and begins again"
    command = ["train", stage1.file, "--out", str(tmp_path / "run"), "--checkpoint.keep"]
    assert main([*command, "2"]) == COMPLETE
    assert begins not in capsys.readouterr().out
    with monkeypatch.context() as patch:

        def interrupted(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(checksums, "write_list", interrupted)
        assert main([*command, "3"]) == RESUMABLE
    assert begins in capsys.readouterr().out
    assert main([*command, "2"]) == COMPLETE
    assert capsys.readouterr().out.count(begins) == 1
    assert not directory.beginning_faults(str(tmp_path / "run"))


def test_a_start_that_waited_for_another_goes_on_with_what_that_has_left(
    stage1, tmp_path, capsys, monkeypatch
):
    """While it waits for the lock, another start trains the whole run."""
    out, alone = tmp_path / "run", held.alone

    @contextlib.contextmanager
    def after_another(folder: str):
        shutil.copytree(stage1.out, folder)
        (out / ".config.yaml.0a1b2c3d.part").write_text("it was killed while it wrote this")
        with alone(folder) as displaced:
            yield displaced

    monkeypatch.setattr(held, "alone", after_another)
    assert main(["train", stage1.file, "--out", str(out)]) == COMPLETE
    assert f"{out}: complete, all 8 steps are done" in capsys.readouterr().out
    assert content(out) == content(stage1.out), "what another left half written is removed"


def test_a_folder_that_is_something_else_gets_no_lock(stage1, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["train", stage1.file, "--out", str(tmp_path)]) == MISTAKE
    assert "expected a run directory or nothing, found notes.txt" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_notice_that_comes_as_soon_as_the_run_is_called_stops_it(stage1, tmp_path, monkeypatch):
    notice, heart = tmp_path / "notice", training.Heart

    def first_thing(config):
        notice.touch()
        return heart(config)

    monkeypatch.setattr(training, "Heart", first_thing)
    asked = {"notice_file": str(notice), "cloud": None, "every_seconds": 0.001}
    run = small_run.read_run(stage1.file, out=str(tmp_path / "run"), preemption=asked)
    with pytest.raises(Preempted, match=f"{notice} announces it: stopped after step"):
        training.train(run)


def test_a_dry_run_beside_a_run_takes_no_lock_and_leaves_nothing(stage1, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", stage1.file, "--out", str(out), "--dry-run"]) == COMPLETE
    assert not out.exists()
    shutil.copytree(stage1.out, out)
    before = content(out)
    with held.alone(str(out)):
        assert main(["train", stage1.file, "--out", str(out), "--dry-run"]) == COMPLETE
    assert "going on after step 8" in capsys.readouterr().out
    assert content(out) == before
