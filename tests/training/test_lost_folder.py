"""A folder of checkpoints that is lost while the run goes on: told, and nothing else is touched."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from astrollava_jax.training import stored
from astrollava_jax.training.checkpoint import Checkpoints, SaveFailed
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.steps import steps


def state(step: int) -> TrainState:
    kernel = {"projector/kernel": jnp.arange(6.0) + step}
    return TrainState(kernel, AdamState(jnp.int32(step), kernel, kernel))


def save(checkpoints: Checkpoints, *numbers: int) -> None:
    for number in numbers:
        checkpoints.save(state(number), Progress(step=number, position=number), {})
        checkpoints.wait()


class Place:
    """A folder that can be lost, and what was said to be good in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.why: str | None = None
        self.good: list[int] = []
        self.checkpoints = Checkpoints(
            str(folder), keep=2, tell=print, lost=lambda: self.why, good=self.good.append
        )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_saved_into_or_read_from_a_folder_that_is_lost(tmp_path):
    place = Place(tmp_path / "checkpoints")
    save(place.checkpoints, 3)
    place.why, before = "run: was replaced by another one", content(tmp_path)
    said = "run: was replaced by another one: nothing can be saved there, and checkpoint 3 was the"
    for number in (3, 5):
        with pytest.raises(SaveFailed, match=said):
            save(place.checkpoints, number)
    with pytest.raises(SaveFailed, match=said):
        place.checkpoints.restore_newest(state(0))
    assert content(tmp_path) == before


def test_a_folder_that_another_takes_the_place_of_in_mid_save_is_told(tmp_path, monkeypatch):
    """The other one holds the same step, which stays."""
    save(Place(tmp_path / "other").checkpoints, 5)
    before = content(tmp_path / "other")
    place = Place(tmp_path / "checkpoints")
    read_back = stored.read_back

    def replaced(*arguments):
        found = read_back(*arguments)
        place.folder.rename(tmp_path / "ours")
        (tmp_path / "other").rename(place.folder)
        place.why = "run: was replaced by another one"
        return found

    monkeypatch.setattr(stored, "read_back", replaced)
    with pytest.raises(SaveFailed, match="another one: nothing can be saved there, and no check"):
        save(place.checkpoints, 5)
    place.folder.rename(tmp_path / "other")
    assert content(tmp_path / "other") == before
    assert place.good == []


def test_a_folder_lost_in_mid_save_makes_no_good_step_of_what_was_written(tmp_path, monkeypatch):
    place = Place(tmp_path / "checkpoints")
    read_back = stored.read_back

    def lost(*arguments):
        place.why = "run: was emptied"
        return read_back(*arguments)

    monkeypatch.setattr(stored, "read_back", lost)
    with pytest.raises(SaveFailed, match="run: was emptied: nothing can be saved there"):
        save(place.checkpoints, 5)
    assert place.good == [] and place.checkpoints.last_good is None


def test_every_step_that_was_found_whole_is_told(tmp_path):
    place = Place(tmp_path)
    save(place.checkpoints, 3, 5, 7)
    assert place.good == [3, 5, 7]
    shutil.rmtree(tmp_path / "7")
    again = Place(tmp_path)
    found = again.checkpoints.restore_newest(state(0))
    assert found is not None and again.good == [5]


def test_what_cannot_be_noted_of_a_good_step_is_told_and_ends_nothing(tmp_path, capsys):
    def failing(step: int) -> None:
        raise OSError(f"no room for {step}")

    checkpoints = Checkpoints(str(tmp_path), keep=2, good=failing)
    save(checkpoints, 3, 5, 7)
    assert steps(str(tmp_path)) == [5, 7]
    assert "it could not be noted that step 5 is good: no room for 5" in capsys.readouterr().out


def test_a_good_step_that_somebody_removes_is_told_and_the_next_one_is_saved(tmp_path, capsys):
    place = Place(tmp_path / "checkpoints")
    save(place.checkpoints, 3)
    shutil.rmtree(place.folder)
    save(place.checkpoints, 5)
    said = capsys.readouterr().out
    assert f"CHECKPOINT LOST: {place.folder}/3 was good, and was removed" in said
    assert steps(str(place.folder)) == [5] == [place.checkpoints.last_good]
    save(place.checkpoints, 7, 9, 11)  # what is removed for its age is not lost
    assert "LOST" not in capsys.readouterr().out
