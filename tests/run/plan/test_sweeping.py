"""`plan --sweep`: settings of a run, compiled one after another, told at once and ranked."""

import dataclasses
import json
from collections.abc import Iterator

import jax
import pytest
from planning_programs import FSDP, program, work
from stand_in import changed

from astrollava_jax import compiler, config
from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.planning.network import ring_of
from astrollava_jax.planning.schedule import modelled
from astrollava_jax.planning.topologies import topology
from astrollava_jax.run import planning, sweeping
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Machine, plan
from astrollava_jax.run.sweep_settings import settings
from astrollava_jax.weights.outline import outline

EIGHT = Machine("v5e-8", jax.devices(), 1 << 40, topology("v5e-8"))
"""The devices of the tests, with the speeds of a machine of the table."""


@pytest.fixture
def compiled(planned, monkeypatch) -> Iterator[list[tuple[RunConfig, dict]]]:
    """What a stand-in for the compiler was asked.

    It breaks down at `dots_attention`, and `none` is too large. All else takes longer where more is
    computed again, without options, and with shared tensors.
    """
    asked = []

    def stand_in(run: RunConfig, where, outline, *, throughput, told):
        assert throughput
        asked.append((run, told))
        if run.remat == "dots_attention":
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat 0x1")
        micro = 1000 * run.mesh.tensor * (2 if run.remat == "full" else 1) + 500 * (not told)
        found = changed(planned, run, fits=run.remat != "none")
        return dataclasses.replace(found, machine=EIGHT, text=program(work(micro)), useful=1.0)

    monkeypatch.setattr(planning, "machine", lambda name: EIGHT)
    monkeypatch.setattr(sweeping, "plan", stand_in)
    yield asked


def test_likely_settings_are_compiled_plain_fsdp_first(folder, compiled, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--sweep", "--rows-per-chip"]
    assert main([*argv, "2"]) == 0
    (run, told), *others = compiled
    assert (run.mesh.fsdp, run.mesh.frozen, run.remat, told) == (8, "sharded", "full", {})
    assert all(other == compiler.options(jax.devices()[0]) for _, other in others)
    shapes = [(run.mesh.fsdp, run.mesh.tensor, run.batch.rows_per_device) for run, _ in others]
    assert shapes == 3 * [(4, 2, 4)] + 3 * [(8, 1, 2)], "the file's mesh is that of tensor2 too"
    assert [run.remat for run, _ in others] == 2 * ["full", "mlp", "dots_attention"]
    said = capsys.readouterr()
    ranked = [line.split("|")[1].strip() for line in said.out.splitlines() if "| " in line][2:]
    assert ranked[0] == "fsdp 8, remat mlp, options table"
    assert ranked.index("fsdp 8, remat full, options none (plain)") == 3
    assert "times are modelled, not measured: 11% to 23% too pessimistic" in said.out
    assert (
        "not compiled: fsdp 8, remat dots_attention, options table: INTERNAL: Mosaic failed\n"
        in said.out
    )
    assert "at 0x1" not in said.out + said.err
    assert "7 settings; modelled, not measured" in said.err
    assert "[1/7] fsdp 8, remat full, options none, 2 row(s) per chip: fits" in said.err


def test_axes_of_a_command_line_replace_the_likely_ones(folder, compiled, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--json", "--sweep"]
    argv += ["rows=1,2", "mesh=fsdp,data2", "remat=attention,none", "options=none", "attention=xla"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["plain"] for row in rows] == 2 * [True, False, False, False, False]
    assert [row["rows_per_chip"] for row in rows] == 5 * [1] + 5 * [2]
    first, saving, large, twice = rows[:4]
    assert (first["attention"], saving["attention"]) == ("auto", "xla"), "plain's is the run's"
    assert (twice["mesh"], twice["options"]) == ({"data": 2, "fsdp": 4}, {})
    assert (large["verdict"], large["needed_bytes"], large["modelled"]) == (
        "does not fit", 2 << 30, None,
    )  # fmt: skip
    assert first["modelled"]["step_seconds"] == pytest.approx(2_500_000 / 1.5e9)
    assert saving["modelled"]["time_per_token_of_plain"] == pytest.approx(1500 / 2500)
    assert saving["samples_per_step"] and "not measured" in saving["reliance"]
    assert [run.batch.rows_per_device for run, _ in compiled] == 5 * [1] + 5 * [2]


def test_what_is_told_is_what_the_model_says_of_the_program(folder, planned, monkeypatch, capsys):
    four = topology("v5e-4")
    machine = Machine("v5e-4", jax.devices()[:4], 1 << 40, four)
    found = dataclasses.replace(planned, text=FSDP, machine=machine, useful=1e9)
    monkeypatch.setattr(planning, "machine", lambda name: machine)
    monkeypatch.setattr(sweeping, "plan", lambda *_, **__: found)
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--json", "--sweep"]
    assert main([*argv, "mesh=fsdp", "remat=full", "options=none", "rows=3"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    step = modelled(FSDP, four.chip, ring_of(four))
    assert row["modelled"]["step_seconds"] == step.seconds
    assert row["modelled"]["exposed_seconds"] == step.exposed_seconds
    assert row["modelled"]["mfu"] == 1e9 / (4 * 197e12 * step.seconds)
    tokens = 3 * planned.run.batch.length
    assert row["modelled"]["tokens_per_second_per_chip"] == pytest.approx(tokens / step.seconds)


def test_the_rows_are_those_of_the_batch_unless_they_are_named(folder, compiled):
    assert main(["plan", str(folder / "run.yaml"), "--topology", "local", "--sweep"]) == 0
    assert {run.batch.rows_per_device for run, _ in compiled if run.mesh.tensor == 1} == {4}


def test_the_code_says_whether_any_setting_fits(folder, compiled, monkeypatch):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--sweep", "remat=full"]
    assert main(argv) == 0
    monkeypatch.setattr(sweeping, "plan", lambda run, *_, **__: refuse(run))
    with pytest.raises(SystemExit, match="3"):
        main(argv)


def refuse(run: RunConfig):
    raise ValueError(f"{run.mesh} divides nothing")


def test_the_compiler_is_told_exactly_the_options_of_a_setting(folder):
    """Not what the run says, nor the table: an unknown name is refused by the compiler itself."""
    run = config.load(RunConfig, str(folder / "run.yaml"))
    run = dataclasses.replace(run, compiler_options={"xla_of_the_run": 1})
    machine, model = Machine("eight", jax.devices(), 1 << 30, None), outline(str(folder / "hf"))
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        plan(run, machine, model, told={"xla_of_the_setting": 1})
    assert "xla_of_the_setting" in str(refused.value) and "of_the_run" not in str(refused.value)
    with pytest.raises(ValueError, match=r"compiler_options\.xla_of_the_run: the compiler"):
        plan(run, machine, model)


def test_mistakes_of_a_sweep_are_told_all_at_once(folder, compiled, capsys, monkeypatch):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--sweep"]
    assert main([*argv, "rows=0,2", "remat=some", "layers=3", "full"]) == MISTAKE
    said = capsys.readouterr().err
    assert "rows=0: expected a number from 1 on" in said and "rows=2" not in said
    assert "remat=some: expected one of none, dots_attention, dots, mlp, projections" in said
    assert "layers=3: expected AXIS=VALUE,VALUE with one of rows, mesh, remat" in said
    assert "full: expected AXIS=VALUE" in said
    three = dataclasses.replace(EIGHT, devices=jax.devices()[:3])
    monkeypatch.setattr(planning, "machine", lambda name: three)
    assert main([*argv, "mesh=tensor2", "--mesh", "{data: 3}"]) == MISTAKE
    assert "--sweep mesh=tensor2: 2 does not divide 3 chip(s)" in capsys.readouterr().err
    none = dataclasses.replace(EIGHT, topology=None)
    monkeypatch.setattr(planning, "machine", lambda name: none)
    assert main(argv) == MISTAKE
    assert "--sweep: v5e-8 is not in the table of topologies" in capsys.readouterr().err
    assert not compiled


def test_a_setting_is_taken_once_and_one_that_cannot_be_is_a_line(folder, compiled, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--sweep"]
    run, model = config.load(RunConfig, str(folder / "run.yaml")), outline(str(folder / "hf"))
    words = ["rows=2,2", "mesh=file,tensor2", "remat=full,mlp,full", "options=table"]
    found = settings(run, EIGHT, model, words, None)
    assert [one.remat for one in found] == ["full", "mlp"]
    assert main([*argv, "rows=2000000,2", "mesh=fsdp", "remat=mlp"]) == 0
    said = capsys.readouterr().out
    assert "not compiled: fsdp 8, remat mlp, options table: " in said
    assert "rows_per_device is 2000000, expected at most" in said


def test_what_is_said_twice_of_an_axis_is_refused(folder, compiled, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--rows-per-chip", "8"]
    assert main([*argv, "--sweep", "remat=full", "rows=2", "remat=mlp", "layers=3"]) == MISTAKE
    said = capsys.readouterr().err
    assert "remat=mlp: remat is named twice" in said and "layers=3: expected" in said
    assert "rows: --rows-per-chip 8 names them too" in said and not compiled
