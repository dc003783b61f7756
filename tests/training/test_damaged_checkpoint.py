"""Checkpoints that are not what was written: set aside under a name that says why, never used."""

import os
import shutil
from pathlib import Path

import pytest
from locked_out import locked_out, open_folder
from small_checkpoints import KERNEL, data_file, flip, restored, saved, state

from astrollava_jax.training import checkpoint
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.state import Progress
from astrollava_jax.training.steps import aside, steps


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


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


@pytest.mark.parametrize("place", ["", "trainable"])
def test_a_step_that_may_not_be_entered_is_told_and_not_taken_for_a_damaged_one(place):
    with open_folder() as folder:
        checkpoints = saved(folder, 3, 7)
        with locked_out(folder / "7" / place):
            with pytest.raises(PermissionError, match=f"{folder}/7.*{place}"):
                checkpoints.restore_newest(state())
        assert steps(str(folder)) == [3, 7] and aside(str(folder)) == []
