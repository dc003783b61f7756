"""A killed run goes on as if nothing had happened; another run is refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import arrays, curve, held_out

from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.run import held
from astrollava_jax.run.train import train
from astrollava_jax.training.goodput import Goodput
from astrollava_jax.training.steps import aside, steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@dataclasses.dataclass(frozen=True)
class Killed:
    """A run that was killed on its way from step 5 to step 8."""

    file: str
    out: Path
    left: Path
    """A copy of what it left behind, for another attempt."""


def lines(out: Path) -> list[dict]:
    """The whole lines of a log, as they stand."""
    path = out / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def start(file: str) -> subprocess.Popen:
    """`astrollava train` in a process of its own, which compiles for itself."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "astrollava_jax", "train", file]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kill_after_checkpoint(file: str, out: Path) -> None:
    """Starts a run, and kills it once checkpoint 4 is finished and step 5 is told, as it goes on.

    Before it tells of step 6 it evaluates, which it must compile first: time enough.
    """
    process = start(file)
    while process.poll() is None:
        if steps(str(out / "checkpoints")) == [4] and len(lines(out)) >= 5:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    told = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, told
    assert len(lines(out)) == 5, told


def test_a_second_start_beside_the_first_is_refused(stage1, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(held, "PATIENCE_SECONDS", 0.0)
    out = tmp_path / "one"
    with held.alone(str(out)):
        assert main(["train", stage1.file, "--out", str(out)]) == MISTAKE
    assert f"{out}: another process trains in it" in capsys.readouterr().err
    assert not (out / "base.json").exists()


@pytest.mark.parametrize("lost", ["trainable", "trainable/_METADATA"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(lost, stage1, tmp_path, capsys):
    shutil.copytree(stage1.out, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    if (folder / "8" / lost).is_dir():
        shutil.rmtree(folder / "8" / lost)
    else:
        (folder / "8" / lost).write_bytes(b"")
    assert main(["train", stage1.file, "--out", str(tmp_path / "run")]) == COMPLETE
    told = " ".join(capsys.readouterr().out.split())
    assert "DAMAGED CHECKPOINT: step 8 is not what was written" in told
    assert f"{folder}/8/trainable/_METADATA: expected" in told
    assert "going on after step 4 of 8" in told
    assert curve(tmp_path / "run") == curve(stage1.out)
    assert steps(str(folder)) == [4, 8] and aside(str(folder))[0].startswith("8.damaged-")


def test_a_run_without_a_good_checkpoint_does_not_begin_again_unasked(stage1, tmp_path, capsys):
    shutil.copytree(stage1.out, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for step in ("4", "8"):
        (folder / step / "trainable" / "_METADATA").unlink()
    assert main(["train", stage1.file, "--out", str(tmp_path / "run")]) == MISTAKE
    assert "no good checkpoint is left" in capsys.readouterr().err
    assert aside(str(folder)) == ["4.damaged-missing", "8.damaged-missing"]


@pytest.fixture(scope="module")
def killed(request, sky) -> dict[int, Killed]:
    """Both stages, killed while the same runs go their way without interruption."""
    init, found, deaths = small_run.fresh_projector(sky / "base"), {}, []
    with ThreadPoolExecutor() as watchers:
        for stage in (1, 2):
            out = sky / f"killed{stage}"
            file = small_run.run_file(sky, stage, init, out)
            found[stage] = Killed(file, out, sky / f"left{stage}")
            deaths.append(watchers.submit(kill_after_checkpoint, file, out))
            init = small_run.model_at(request.getfixturevalue(f"stage{stage}").out)
        for death in deaths:
            death.result()
    for run in found.values():
        shutil.copytree(run.out, run.left)
    return found


@pytest.mark.parametrize("stage", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(stage, killed, stage1, stage2, capsys):
    whole, parts = {1: stage1, 2: stage2}[stage].out, killed[stage].out
    before = len(lines(parts))
    train(small_run.read_run(killed[stage].file))
    attempts = [(facts["attempt"], facts["step"]) for facts in lines(parts) if "loss" in facts]
    assert attempts == [(1, step) for step in range(1, 6)] + [(2, step) for step in range(5, 9)]
    assert lines(parts)[4]["loss"] == lines(parts)[before]["loss"] == curve(whole)[4][0]
    assert curve(parts) == curve(whole)

    # What it says of its whole time, as it goes on and at its end: step 5 was done twice.
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("goodput ")]
    assert len(told) == 2 and "not running 0.0%" not in told[0]
    twice, spent = lines(parts)[4], Goodput(lines(parts)).seconds
    assert spent["lost"] == pytest.approx(twice["seconds"] * (1 - twice["input_wait"]))
    whole_time = lines(parts)[-1]["time"] - lines(parts)[0]["began"]
    assert sum(spent.values()) == pytest.approx(whole_time)
    assert held_out(parts) == held_out(whole)
    expected, found = arrays(whole, 8), arrays(parts, 8)
    assert found["optimizer/count"] == small_run.STEPS
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype and array.tobytes() == found[name].tobytes(), name


def test_a_run_goes_on_upon_another_mesh(killed, stage2):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    out = str(killed[2].left)
    train(small_run.read_run(killed[2].file, out=out, mesh=mesh, batch__rows_per_device=1))
    assert curve(out)[:4] == curve(stage2.out)[:4]
    found, expected = np.array(curve(out)), np.array(curve(stage2.out))
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    assert np.array_equal(found[:, 2], expected[:, 2])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so(stage1, capsys):
    before = content(stage1.out)
    assert main(["train", stage1.file]) == COMPLETE
    assert f"{stage1.out}: complete, all 8 steps are done" in capsys.readouterr().out
    assert content(stage1.out) == before


def test_another_run_is_refused_by_the_keys_that_differ(stage1, capsys):
    before = content(stage1.out)
    changes = ["--optimizer.groups.0.peak_lr", "1e-4", "--seed", "4", "--log.every_steps", "1"]
    assert main(["train", stage1.file, *changes]) == MISTAKE
    told = capsys.readouterr().err
    assert f"{stage1.out} holds another run" in told
    assert "seed: 3 -> 4" in told and "peak_lr" in told and "0.01" in told
    assert "every_steps" not in told and "Traceback" not in told
    assert content(stage1.out) == before
