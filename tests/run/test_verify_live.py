"""`verify` beside a run that goes on: what it writes, removes or replaces is no damage."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from astrollava_jax import checksums, files
from astrollava_jax.cli.main import COMPLETE, FAILED, MISTAKE, main
from astrollava_jax.run import directory, held
from astrollava_jax.run.verify import verify
from astrollava_jax.training import manifest, steps, stored
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState

KERNEL = "projector/layers_0/kernel"


def save(checkpoints: Checkpoints, step: int, number: float) -> None:
    arrays = {KERNEL: jnp.full((4, 3), number)}
    state = TrainState(arrays, AdamState(jnp.int32(step), arrays, arrays))
    checkpoints.save(state, Progress(step=step), {})


def checkpoints_of(run: Path) -> Checkpoints:
    return Checkpoints(str(run / "checkpoints"), keep=3, tell=[].append, run="ours")


@pytest.fixture
def run(tmp_path) -> Path:
    """The least that is a run directory, with checkpoints of steps 3, 5 and 7."""
    run = tmp_path / "run"
    files.write_json(run / "base.json", {"format": directory.FORMAT, "run": "ours"})
    checksums.write_list(str(run))
    checkpoints = checkpoints_of(run)
    for step in (3, 5, 7):
        save(checkpoints, step, step)
    checkpoints.close()
    return run


def said(path: Path) -> dict[str, str]:
    """The first word about everything, by the end of its path."""
    return {files.name(found.path): str(found).split()[0] for found in verify(str(path))}


def exit_code(*argv: object) -> object:
    try:
        return main([str(word) for word in argv])
    except SystemExit as left:
        return left.code


@pytest.fixture
def being_written(run, monkeypatch):
    """Step 9, while the run reads it back."""
    reached, go_on = threading.Event(), threading.Event()
    read_back = stored.read_back

    def waiting(*arguments):
        reached.set()
        assert go_on.wait(60)
        return read_back(*arguments)

    monkeypatch.setattr(stored, "read_back", waiting)
    with held.alone(str(run)):
        checkpoints = checkpoints_of(run)
        save(checkpoints, 9, 9.0)
        assert reached.wait(60)
        yield run / "checkpoints" / "9"
        go_on.set()
        checkpoints.close()
        assert said(run)["9"] == "ok"


def test_a_step_that_a_run_is_writing_is_no_damage(being_written, capsys):
    folder = being_written.parent
    assert exit_code("verify", folder.parent) == COMPLETE
    told = capsys.readouterr().out
    assert f"writing  {folder}/9: checkpoint, being written by a run that goes on\n" in told
    assert told.count("\nok ") == 3 and "DAMAGED" not in told
    assert exit_code("verify", folder) == COMPLETE
    assert exit_code("verify", folder / "5") == COMPLETE
    assert exit_code("verify", folder / "9") == MISTAKE, "nothing is known of it"


def test_what_a_run_that_is_no_more_left_half_written_is_damage(run):
    (run / "checkpoints" / "7" / "manifest.0-of-1.json").unlink()
    assert said(run)["7"] == "DAMAGED"
    assert exit_code("verify", run) == FAILED
    with held.alone(str(run)):
        assert said(run)["7"] == "writing"


def test_a_damaged_step_is_damage_beside_a_run_that_goes_on(run):
    (run / "checkpoints" / "5" / "_CHECKPOINT_METADATA").write_bytes(b"")
    with held.alone(str(run)):
        assert said(run) == {"run": "ok", "3": "ok", "5": "DAMAGED", "7": "ok"}


def test_the_beginning_of_a_run_that_is_being_written_is_no_damage(run):
    (run / "base.json").unlink()
    shutil.rmtree(run / "checkpoints")
    for name in ("config.yaml", "files/config.json"):
        files.write_text(run / name, "")
    assert said(run) == {"run": "DAMAGED"}
    with held.alone(str(run)):
        found = verify(str(run))
        assert str(next(found)) == f"writing  {run}: beginning of a run, being written"
        with pytest.raises(ValueError, match="nothing here can be verified"):
            next(found)


def meanwhile(monkeypatch, event: Callable[[], None]) -> None:
    """Lets something happen once, between the list of a step's files and the first of them."""
    of_file, left = checksums.of_file, [event]

    def disturbed(path):
        if "checkpoints" in path and left:
            left.pop()()
        return of_file(path)

    monkeypatch.setattr(checksums, "of_file", disturbed)


def test_a_step_that_a_run_removes_while_it_is_verified_is_skipped_and_said(
    run, monkeypatch, capsys
):
    folder = run / "checkpoints"
    meanwhile(monkeypatch, lambda: steps.prune(str(folder), 2, None))
    assert exit_code("verify", run) == COMPLETE
    told = capsys.readouterr().out
    assert f"gone     {folder}/3: checkpoint, removed or renamed before" in told
    assert told.count("\nok ") == 2 and "DAMAGED" not in told


def test_a_step_that_was_removed_before_its_turn_is_said(run):
    found = verify(str(run))
    assert [files.name(one.path) for one in (next(found), next(found))] == ["run", "3"]
    steps.prune(str(run / "checkpoints"), 1, None)
    assert [str(one).split()[0] for one in found] == ["gone", "ok"]


def test_a_step_that_takes_the_place_of_another_is_verified_in_its_turn(run, monkeypatch, tmp_path):
    other = Checkpoints(str(tmp_path / "other"), keep=2, run="ours")
    save(other, 3, 4.0)
    other.close()
    folder = str(run / "checkpoints")

    def replace():
        steps.set_aside(folder, 3, "replaced")
        files.move(tmp_path / "other" / "3", f"{folder}/3")

    meanwhile(monkeypatch, replace)
    assert said(run) == {"run": "ok", "3": "ok", "5": "ok", "7": "ok"}


def test_a_step_that_a_run_removes_when_all_of_it_was_read_is_said(run, monkeypatch):
    faults = manifest.faults

    def removed(path, **options):
        found = faults(path, **options)
        steps.prune(str(run / "checkpoints"), 2, None)
        return found

    monkeypatch.setattr(manifest, "faults", removed)
    assert said(run) == {"run": "ok", "3": "gone", "5": "ok", "7": "ok"}


def test_only_the_beginning_of_a_run_is_listed_for_it(run, monkeypatch):
    walk, listed = files.walk, []
    monkeypatch.setattr(files, "walk", lambda folder: listed.append(str(folder)) or walk(folder))
    assert next(verify(str(run))).files == 2
    assert str(run) not in listed, "files of checkpoints come and go"


@pytest.mark.parametrize("marks", [(), ("trainable",)])
def test_what_orbax_is_still_writing_is_passed_over(run, marks):
    writing = run / "checkpoints" / "9.orbax-checkpoint-tmp"
    for name in ("notes", *marks):
        (writing / name).mkdir(parents=True)
    expected = {"run": "ok", "3": "ok", "5": "ok", "7": "ok"}
    assert said(run) == expected
    for step in (3, 5, 7):
        shutil.rmtree(run / "checkpoints" / str(step))
    assert said(run) == {"run": "ok"}
