"""`plan`: the step of `train`, compiled for eight described chips, and what is told of it."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable

import jax
import pytest
from stand_in import changed

from astrollava_jax.cli import libtpu
from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.run import planning
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Machine


def test_a_chip_holds_its_part_of_weights_moments_and_batch(planned):
    assert planned.fits
    trained = 32 * 48 + 48 + 48 * 48 + 48  # the projector of tiny_llava
    assert planned.mesh == {"data": 1, "fsdp": 4, "tensor": 2}
    # Widths are cut four ways, kernel inputs for one: of the projector all four arrays are.
    kernels, biases = (32 * 48 + 48 * 48), 2 * 48
    assert kernels + biases == trained
    held = planned.held["trainable weights"]
    assert trained * 4 // 4 <= held <= trained * 4
    assert planned.held["moments"] - 2 * held <= 1100, "besides: a count, and a window of losses"
    # 64 samples of 4 + 24 positions, two to a row of 64: 32 rows, 8 for each pair of chips.
    assert (planned.rows.count, planned.rows_per_chip, planned.micro_batches) == (32, 8, 1)
    pixels, words = 2 * 28 * 28 * 3, 4 * (5 * 64 + 2 * 56 + 2)
    assert planned.held["batch"] == 8 * (pixels + words)


def test_the_state_is_updated_in_its_place(planned):
    memory = planned.memory
    state = planned.held["trainable weights"] + planned.held["moments"]
    assert memory.donated == pytest.approx(state, abs=64)
    assert memory.arguments == pytest.approx(sum(planned.held.values()), abs=256)


def test_more_is_executed_than_is_useful(planned):
    assert planned.useful < planned.executed.flops < 3 * planned.useful
    assert planned.executed.inexact == ()


@pytest.fixture
def fitting(planned, monkeypatch):
    """Puts a stand-in for the compiler before the command: what it says of settings that fit."""

    def give(fits: Callable[[RunConfig], bool], room: int = 1 << 40) -> None:
        def stand_in(run, where, outline, *, throughput=False):
            found = changed(planned, run, fits(run))
            return dataclasses.replace(found, machine=Machine("eight", jax.devices(), room, None))

        monkeypatch.setattr(planning, "plan", stand_in)

    return give


def test_a_setting_that_does_not_fit_is_code_3_with_the_nearest_that_does(folder, fitting, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local"]
    fitting(lambda run: run.batch.rows_per_device in (1, 2))
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--json"])
    assert ended.value.code == 3
    said = json.loads(capsys.readouterr().out)
    assert not said["fits"] and said["compiler"] is None
    assert [one["fits"] for one in said["tried"]] == [False, True]
    assert said["nearest"] == "--batch.rows_per_device 2"

    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 3
    said = capsys.readouterr().out
    assert "DOES NOT FIT: needs 2.00 GiB" in said and "rows by halving" in said
    assert "the nearest setting that fits: --batch.rows_per_device 2" in said
    assert main([*argv, "--batch.rows_per_device", "2"]) == 0

    fitting(lambda run: False)
    with pytest.raises(SystemExit):
        main(argv)
    assert "none of them fits" in capsys.readouterr().out


def test_little_room_is_warned_of(folder, fitting, planned, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local"]
    fitting(lambda run: True, planned.needed + (1 << 30))
    assert main(argv) == 0
    assert "1.00 GiB left" in (said := capsys.readouterr().out) and "warning" not in said
    fitting(lambda run: True, planned.needed + (1 << 30) - 1)
    assert main(argv) == 0
    assert "warning: less than 1 GiB is left" in capsys.readouterr().out
    fitting(lambda run: True, planned.needed - 1)
    with pytest.raises(SystemExit, match="3"):
        main(argv)


def test_what_is_printed_of_a_step_of_this_machine(folder, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--rows-per-chip", "1"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "machine: cpu, 8 x cpu; mesh: data 1 x fsdp 4 x tensor 2" in said
    assert "step: 8 samples in 4 rows of 64: 1 time(s) 1 row(s) on each chip" in said
    assert "rows: assumed: 2 sample(s)" in said
    assert "the device does not tell how much it has" in said
    for line in ("frozen weights", "moments", "activations and temporaries", "all-reduce", "FLOPs"):
        assert line in said


def test_mistakes_are_told_in_a_line(folder, capsys, monkeypatch):
    file = str(folder / "run.yaml")
    with monkeypatch.context() as patch:
        for name in (*libtpu.WITHOUT_A_TPU, "JAX_PLATFORMS"):
            patch.setenv(name, "kept")
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert main(["plan", file, "--topology", "v5e-4"]) == MISTAKE
        said = capsys.readouterr().err
        assert "libtpu, which holds the compiler for TPUs, is not installed" in said
        assert "pip install 'astrollava_jax[plan]'" in said
        patch.setattr(importlib.util, "find_spec", lambda name: name)
        assert main(["plan", file, "--topology", "v5e-5"]) == MISTAKE
        assert "'v5e-5' is no known topology" in capsys.readouterr().err
    assert main(["plan", file, "--topology", "local", "--shape", "llava-9b"]) == MISTAKE
    assert "the names are: llava-1.5-7b" in capsys.readouterr().err
    assert main(["plan", file, "--topology", "local", "--rows-per-chip", "0"]) == MISTAKE
    assert "--rows-per-chip is 0, expected at least 1" in capsys.readouterr().err
    assert main(["plan", file, "--topology", "local", "--mesh.data", "3"]) == MISTAKE
    assert "does not fit 8 device(s)" in capsys.readouterr().err
