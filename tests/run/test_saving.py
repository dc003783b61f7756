"""Checkpoints of whole runs: nothing is compiled when one is due; what stays for its age."""

import shutil
from types import SimpleNamespace

import jax.monitoring
import pytest
import small_run
from small_run import curve

from astrollava_jax.cli.main import COMPLETE, main
from astrollava_jax.training import checkpoint, fingerprint
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.steps import steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture
def start(sky, tmp_path):
    """Runs stage 1 with a checkpoint after every step; gives the exit code and the folder."""

    def run(*options: str):
        out = tmp_path / "run"
        file = small_run.run_file(sky, 1, small_run.fresh_projector(sky / "base"), out)
        common = ("--evaluate", "null", "--checkpoint.every_steps", "1")
        return main(["train", file, *common, *options]), out

    return run


@pytest.fixture
def compiled_by_saves(monkeypatch) -> list[int]:
    """How many programs every save of a run compiles, in a process that knows none yet."""
    compiled, counts = [], []

    def listen(event: str, _: float, **facts) -> None:
        compiled.extend([facts] if event == "/jax/core/compile/backend_compile_duration" else [])

    save = Checkpoints.save

    def counted(self, *arguments):
        before = len(compiled)
        save(self, *arguments)
        counts.append(len(compiled) - before)

    monkeypatch.setattr(Checkpoints, "save", counted)
    fingerprint._compiled.clear_cache()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


def test_no_save_compiles_anything_not_even_the_first(start, compiled_by_saves, monkeypatch):
    small_run.on_devices(monkeypatch, 2)  # of a replicated array each could save a part
    code, out = start("--steps", "3")
    assert code == COMPLETE and compiled_by_saves == [0] * 3
    shutil.rmtree(out / "checkpoints" / "3")
    fingerprint._compiled.clear_cache()
    compiled_by_saves.clear()
    assert start("--steps", "3") == (COMPLETE, out) and compiled_by_saves == [0]


@pytest.mark.slow
def test_what_stays_for_its_age_is_whole_and_can_be_gone_on_from(start, monkeypatch, capsys):
    clock = iter(range(1000, 2000, 10))
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(time=lambda: float(next(clock))))
    keep = ("--checkpoint.keep", "2", "--checkpoint.keep_every_hours", str(30 / 3600))
    code, out = start(*keep)
    folder = out / "checkpoints"
    assert code == COMPLETE and steps(str(folder)) == [1, 4, 7, 8]
    whole = curve(out)
    assert main(["verify", str(folder)]) == COMPLETE
    assert capsys.readouterr().out.count("\nok ") == 4
    for step in ("7", "8"):
        shutil.rmtree(folder / step)
    assert start(*keep) == (COMPLETE, out)
    assert "going on after step 4 of 8" in capsys.readouterr().out
    assert curve(out) == whole and steps(str(folder)) == [1, 4, 5, 7, 8], "5 is 50 s after 4"
