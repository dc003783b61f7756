"""`plan`: the step of `train`, compiled for eight described chips, and what is told of it."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import small_run
import tiny_directories as tiny
import tiny_llava
from planning_programs import FSDP
from rich.console import Console

from astrollava_jax import config
from astrollava_jax.cli import plan as command
from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.planning.network import ring_of
from astrollava_jax.planning.program import DoesNotFit
from astrollava_jax.planning.schedule import modelled
from astrollava_jax.planning.topologies import topology
from astrollava_jax.run import estimate, planning
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.run.nearest import nearest
from astrollava_jax.run.plan import Machine, Planned, plan
from astrollava_jax.run.planned_model import planned_model
from astrollava_jax.run.planned_rows import planned_rows
from astrollava_jax.run.records import training_data
from astrollava_jax.sharding import MeshConfig
from astrollava_jax.weights.outline import outline

CONFIGS = Path(__file__).parents[2] / "configs"

RUN = """
out: {folder}/run
steps: 1
init: {{model: {folder}/hf}}
data: [{{records: {folder}/none, template: plain}}]
batch: {{samples: 64, length: 64}}
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {{type: constant}}
mesh: {{data: 1, fsdp: 4, tensor: 2, frozen: sharded}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The config files of a tiny model, and a run on it: no weights, and no records."""
    folder = tmp_path_factory.mktemp("plan")
    tiny.write_hf(folder / "hf", tiny_llava.torch_model())
    (folder / "hf" / "model.safetensors").unlink()
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def planned(folder) -> Planned:
    run = config.load(RunConfig, str(folder / "run.yaml"))
    machine = Machine("eight", jax.devices(), 1 << 30, None)
    return plan(run, machine, outline(str(folder / "hf")))


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
    pixels, words = 2 * 28 * 28 * 3, 4 * (5 * 64 + 2 * 56)
    assert planned.held["batch"] == 8 * (pixels + words)


def test_the_state_is_updated_in_its_place(planned):
    memory = planned.memory
    state = planned.held["trainable weights"] + planned.held["moments"]
    assert memory.donated == pytest.approx(state, abs=64)
    assert memory.arguments == pytest.approx(sum(planned.held.values()), abs=256)


def test_more_is_executed_than_is_useful(planned):
    assert planned.useful < planned.executed.flops < 3 * planned.useful
    assert planned.executed.inexact == ()


def changed(planned: Planned, run: RunConfig, fits: bool) -> Planned:
    refused = None if fits else DoesNotFit(2 << 30, 1 << 30)
    memory = planned.memory if fits else None
    return dataclasses.replace(planned, run=run, refused=refused, memory=memory)


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


def test_settings_are_tried_in_the_order_of_least_harm(planned):
    """A stand-in for the compiler, to which nothing fits but eight ways of a tensor."""
    tried = []

    def compile_step(run: RunConfig) -> Planned:
        tried.append(run)
        return changed(planned, run, fits=run.mesh.tensor == 8)

    run = dataclasses.replace(planned.run, remat="none")
    first = changed(planned, run, fits=False)
    first = dataclasses.replace(first, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    found = list(nearest(first, compile_step))
    assert [one.said.split("--")[-1] for one in found] == [
        "batch.rows_per_device 4", "batch.rows_per_device 2", "batch.rows_per_device 1",
        "remat dots", "remat attention", "remat full", "remat offload",
        "mesh '{data: 1, fsdp: 4, tensor: 2, frozen: sharded}'",
        "precision.frozen int8", "precision.frozen nf4",
        "mesh '{data: 1, fsdp: 2, tensor: 4, frozen: sharded}'",
        "mesh '{data: 1, fsdp: 1, tensor: 8, frozen: sharded}'",
    ]  # fmt: skip
    last = tried[-1]
    assert (last.batch.rows_per_device, last.remat, last.precision.frozen) == (1, "offload", "nf4")
    assert last.mesh == MeshConfig(data=1, fsdp=1, tensor=8, frozen="sharded")
    assert found[-1].said == (
        "--batch.rows_per_device 1 --remat offload --precision.frozen nf4 "
        "--mesh '{data: 1, fsdp: 1, tensor: 8, frozen: sharded}'"
    )


def test_frozen_weights_are_sharded_before_they_lose_precision_unless_they_are(planned):
    run = dataclasses.replace(planned.run, remat="offload")
    mesh = "--mesh '{data: 1, fsdp: 4, tensor: 2, frozen: sharded}'"

    def said(**known) -> list[str]:
        """What is tried where nothing fits, and one row is computed at a time already."""
        first = dataclasses.replace(changed(planned, run, fits=False), micro_batches=8, **known)
        return [one.said for one in nearest(first, lambda run: changed(planned, run, fits=False))]

    assert planned.frozen == "sharded" and mesh not in said()
    assert said(frozen="replicated")[:2] == [mesh, f"{mesh} --precision.frozen int8"]
    assert mesh not in said(frozen="replicated", held={**planned.held, "frozen weights": 0})


def test_a_setting_that_cannot_be_is_told_and_passed_over(planned):
    def compile_step(run: RunConfig) -> Planned:
        if run.precision.frozen == "int8":
            raise ValueError("nothing to store")
        return changed(planned, run, fits=run.precision.frozen == "nf4")

    run = dataclasses.replace(planned.run, remat="offload")
    first = dataclasses.replace(changed(planned, run, fits=False), micro_batches=8)
    int8, nf4 = nearest(first, compile_step)
    assert (int8.planned, int8.why) == (None, "nothing to store")
    assert nf4.said == "--precision.frozen nf4"


def test_a_try_on_which_the_compiler_breaks_down_costs_no_other(planned):
    errors = iter([jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat 0x1\nat 0x2"),
                   NotImplementedError()])  # fmt: skip

    def compile_step(run: RunConfig) -> Planned:
        if error := next(errors, None):
            raise error
        return changed(planned, run, fits=True)

    *broken, last = nearest(changed(planned, planned.run, fits=False), compile_step)
    assert [(one.planned, one.why) for one in broken] == [
        (None, "INTERNAL: Mosaic failed"), (None, "NotImplementedError()"),
    ]  # fmt: skip
    assert last.said == "--batch.rows_per_device 1" and last.planned is not None


def test_fewer_rows_are_told_as_they_were_asked_for(planned):
    first = changed(planned, planned.run, fits=False)
    found = nearest(first, lambda run: changed(planned, run, fits=True), rows="--rows-per-chip")
    assert [one.said for one in found] == ["--rows-per-chip 4"]


@pytest.mark.parametrize(
    ("recipe", "images", "learned", "samples", "rows"),
    [
        ("stage1_align", 3, 320, 256, 86),
        ("stage2_instruct", 2, 896, 128, 64),
        ("astro_next_stage2", 5, 1168, 128, 128),
    ],
)
def test_without_records_rows_are_as_full_as_the_recipe_makes_them(
    recipe, images, learned, samples, rows
):
    run = config.load(RunConfig, str(CONFIGS / f"{recipe}.yaml"))
    shape = "llava-v1.6-vicuna-7b" if "next" in recipe else "llava-1.5-7b"
    found = planned_rows(run, outline(shape).config.image_facts, 1, None)
    assert found.shape == (run.batch.length, learned, images)
    assert (found.samples, found.count) == (samples, rows)
    assert found.said.startswith("assumed")


def test_a_run_that_has_measured_its_records_is_planned_by_them(stage1):
    run = small_run.read_run(stage1.file)
    shape = outline(str(run.init.model))
    facts, folder = shape.config.image_facts, shape.tokenizer_folder
    assert folder is not None
    found = planned_rows(run, facts, 8, folder)
    assert found.said == f"the lengths kept in {stage1.out}/plan"
    expected = training_data(run, Tokenizer.from_folder(folder), facts, 8).plan
    assert (found.shape, found.count) == (expected.shape, expected.rows)
    assert found.samples == run.batch.samples
    elsewhere = dataclasses.replace(run, out=f"{run.out}/none")
    assert planned_rows(elsewhere, facts, 8, folder).said.startswith("assumed")


def test_a_run_that_is_to_begin_from_one_that_is_not_there_yet(folder):
    init = InitConfig(model=str(folder / "run"))
    found = planned_model(init, str(folder))
    assert found.config == tiny_llava.our_config()
    (note,) = found.notes
    assert note.startswith(f"{folder}/run is not here: the model of {folder}/run.yaml, which will")
    sized = dataclasses.replace(init, image_size=42)
    assert planned_model(sized, str(folder)).config.vision.image_size == 42
    assert planned_model(init, str(folder), "llava-1.5-7b").config.llm.num_layers == 32


def test_runs_that_begin_from_one_another_are_a_mistake_that_names_them(folder, tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"

    def write(file: Path, out: str, model: str) -> None:
        text = RUN.replace("{folder}/run", str(tmp_path / out))
        text = text.replace("{folder}/hf", str(tmp_path / model))
        file.write_text(text.format(folder=folder))

    write(a, "one", "one")
    with pytest.raises(ValueError, match=f"in a circle.*: {a} begins from {a}; one of them must"):
        planned_model(InitConfig(model=str(tmp_path / "one")), str(tmp_path))
    write(a, "one", "two")
    write(b, "two", "one")
    with pytest.raises(ValueError, match=f": {b} begins from {a} begins from {b};"):
        planned_model(InitConfig(model=str(tmp_path / "two")), str(tmp_path))


def test_mistakes_are_told_in_a_line(folder, capsys, monkeypatch):
    file = str(folder / "run.yaml")
    with monkeypatch.context() as patch:
        for name in command.COMPILER:
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
