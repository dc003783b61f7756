"""`plan --estimate`: the modelled time of a planned step, and what is said of it."""

import dataclasses
import json

import jax
import pytest
from planning_programs import FSDP
from rich.console import Console

from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.planning.network import ring_of
from astrollava_jax.planning.program import DoesNotFit
from astrollava_jax.planning.schedule import modelled
from astrollava_jax.planning.topologies import topology
from astrollava_jax.run import estimate, planning
from astrollava_jax.run.plan import Machine, plan
from astrollava_jax.weights.outline import outline


def test_a_modelled_time_is_told_with_what_it_is_worth(planned, capsys):
    """The kept program of four chips, as if the compiler had made it of this step."""
    four = topology("v5e-4")
    machine = Machine("v5e-4", jax.devices(), four.chip.hbm_bytes, four)
    planned = dataclasses.replace(planned, text=FSDP, machine=machine, useful=1e9, steps=3600)
    step, found = estimate.estimated(planned)
    assert step == modelled(FSDP, four.chip, ring_of(four))
    assert found.samples_per_second == planned.rows.samples / step.seconds
    assert found.mfu == 1e9 / (4 * 197e12 * step.seconds)
    assert found.hours == pytest.approx(step.seconds)
    told = estimate.facts(step, found)
    parts = [told[f"{part}_seconds"] for part in ("compute", "attention_kernel", "copy")]
    assert sum(parts) + sum(told["exposed_seconds"].values()) == pytest.approx(step.seconds)

    estimate.show(Console(width=300), step, found)
    said = capsys.readouterr().out
    assert "modelled, not measured: 11% to 23% too pessimistic" in said
    assert f"step {step.seconds * 1e3:.1f} ms: compute " in said and "for the run's steps" in said

    unknown = estimate.estimated(dataclasses.replace(planned, steps=None))
    assert unknown is not None and unknown[1].hours is None
    impossible = dataclasses.replace(planned, useful=1e30)
    with pytest.raises(ValueError, match="use no figure of this model"):
        estimate.estimated(impossible)


def test_steps_of_another_batch_than_the_runs_make_no_hours_of_it(planned, folder, monkeypatch):
    def refuse(*_):
        raise DoesNotFit(2 << 30, 1 << 30)

    assert planned.steps == planned.run.steps == 1
    monkeypatch.setattr("astrollava_jax.run.plan.compile_program", refuse)
    batch = dataclasses.replace(planned.run.batch, rows_per_device=1)
    run = dataclasses.replace(planned.run, batch=batch)
    found = plan(run, planned.machine, outline(str(folder / "hf")), throughput=True)
    assert found.steps is None and found.rows.count < planned.rows.count


def test_a_model_that_leaves_too_much_out_costs_its_figures_and_nothing_else(
    folder, planned, capsys, monkeypatch
):
    four = topology("v5e-4")
    machine = Machine("v5e-4", jax.devices(), 1 << 40, four)
    impossible = dataclasses.replace(planned, text=FSDP, machine=machine, useful=1e30)
    monkeypatch.setattr(planning, "machine", lambda name: machine)
    monkeypatch.setattr(planning, "plan", lambda *_, **__: impossible)
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--estimate"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] and said["needed_bytes"] == planned.needed and said["estimate"] is None
    assert "use no figure of this model" in said["estimate_refused"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "no ESTIMATE: 1e+30 useful FLOPs do not fit" in said and "fits: peak" in said


def test_only_machines_of_the_table_are_modelled(folder, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--estimate"]
    assert main(argv) == MISTAKE
    assert "--estimate: cpu is not in the table of topologies" in capsys.readouterr().err
