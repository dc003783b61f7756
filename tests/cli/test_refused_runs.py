"""Runs that cannot be, refused at the door: what is wrong in the file, the data or the mesh."""

import re

import pytest

from astrollava_jax.cli.main import main


def test_all_wrong_keys_are_told_at_once_with_the_nearest_name(folder, refused):
    wrong = (folder / "run.yaml").read_text().replace("steps: 1", "step: 1")
    wrong = wrong.replace("peak_lr", "peek_lr").replace("samples: 8", "samples: many")
    path = folder / "wrong.yaml"
    path.write_text(wrong)
    said = refused("train", path)
    assert f"{path}: 4 fault(s)" in said
    assert "step: unknown key; did you mean 'steps'?" in said
    assert "optimizer.groups.0.peek_lr: unknown key; did you mean 'peak_lr'?" in said
    assert "optimizer.groups.0.peak_lr: required, and missing" in said
    assert "batch.samples: " in said and "'many'" in said


def test_a_wrong_override_is_told_like_a_wrong_key(folder, refused):
    said = refused("train", folder / "run.yaml", "--batch.lenght", "32", "--seed", "one")
    assert "batch.lenght: unknown key; did you mean 'length'?" in said
    assert "seed: " in said and "'one'" in said
    assert "--seed: expected a value" in refused("train", folder / "run.yaml", "--seed")
    said = refused("train", folder / "run.yaml", "--steps", "3", "--epochs", "1")
    assert "--steps and --epochs: give one of them" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("steps", 1_000_000_000),
        ("epochs", 1_000_000_000),
        ("batch.length", 1_000_000_000),
        ("workers", 1000),
        ("batch.samples", 0),
        ("batch.rows_per_device", -1),
        ("data.0.weight", 0),
        ("checkpoint.keep", 1),
        ("checkpoint.every_steps", 0),
        ("log.every_steps", 0),
        ("out", "runs/try[1]"),
        ("workers", -1),
        ("bad_records.max_fraction", 1.5),
        ("optimizer.groups.0.peak_lr", -1e-3),
        ("optimizer.schedule.warmup_fraction", 3),
    ],
)
def test_a_number_that_cannot_be_is_refused(key, value, folder, refused):
    said = refused("train", folder / "run.yaml", f"--{key}", value)
    assert key.split(".")[-1] in said and str(value) in said


def test_a_missing_file_of_a_run(folder, refused):
    assert f"{folder}/none.yaml: expected a YAML file" in refused("train", folder / "none.yaml")
    assert f"{folder}/grey: is a directory" in refused("train", folder / "grey")
    said = refused("train", folder / "run.yaml", "--out", folder / "run.yaml")
    assert f"{folder}/run.yaml: file exists" in said


def test_missing_record_sets_are_told_together(folder, refused):
    sets = f"[{{records: {folder}/none, template: plain}}, {{records: {folder}, template: plain}}]"
    said = refused("train", folder / "run.yaml", "--data", sets)
    assert "`records` must name the folder of a set" in said
    assert f"{folder}/none: expected the folder of a record set, found none" in said
    assert f"{folder}: expected shards" in said
    evaluate = f"{{records: {folder}/held_out, every_steps: 1}}"
    said = refused("train", folder / "run.yaml", "--evaluate", evaluate)
    assert f"{folder}/held_out: expected the folder of a record set" in said
    assert not (folder / "run" / "base.json").exists(), "no run is begun before all of it is there"


def test_a_row_too_short_for_an_image(folder, refused):
    said = refused("train", folder / "run.yaml", "--batch.length", "5")
    assert "batch.length is 5, but one image takes 4 positions" in said
    assert "make the length at least 6" in said


def test_a_batch_and_a_mesh_that_do_not_fit(folder, refused):
    run = folder / "run.yaml"
    said = refused("train", run, "--batch", "{rows: 12, length: 64}")
    assert "batch.rows is 12" in said and "make it a multiple of 8" in said
    said = refused("train", run, "--mesh.data", "3", "--mesh.fsdp", "1")
    assert "{'data': 3, 'fsdp': 1, 'tensor': 1} does not fit 8 device(s)" in said
    said = refused("train", run, "--mesh.tensor", "auto")
    assert "at most one of data, fsdp and tensor may be auto" in said
    said = refused("train", run, "--mesh", "{fsdp: 1, tensor: 8}")
    assert "llm/layers/attn/q_proj/kernel: heads is 4, not divisible by ('tensor',) = 8" in said


def test_a_run_directory_of_another_run(folder, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("astrollava_jax.run.train._run", lambda *_: None)  # begin, and no more
    argv = ("train", str(folder / "run.yaml"), "--out", str(tmp_path / "run"))
    assert main([*argv]) == 0
    said = refused(*argv, "--batch.length", "128", "--seed", "5", "--checkpoint.keep", "2")
    assert f"{tmp_path}/run holds another run; choose another `out`" in said
    assert "batch.length: 64 -> 128" in said and "seed: 0 -> 5" in said
    assert "checkpoint" not in said
    assert main([*argv, "--checkpoint.keep", "2"]) == 0
    said = refused("ask", tmp_path / "run", "What is this?")
    assert f"{tmp_path}/run: no checkpoint" in said


def test_fates_that_do_not_cover_the_parameters(folder, refused):
    frozen = '["vision/layers/.*", "llm/.*", "projektor/.*"]'
    said = refused("train", folder / "run.yaml", "--optimizer.frozen", frozen)
    assert "every parameter needs exactly one row" in said and "optimizer.frozen" in said
    assert "'projektor/.*': matches no parameter (they begin with llm, projector, vision)" in said
    assert "vision/patch_embed/kernel: matched by no row" in said
    said = refused("train", folder / "run.yaml", "--optimizer.frozen", "[]")
    assert re.search(r"llm/.*: matched by no row", said)
    said = refused("train", folder / "run.yaml", "--optimizer.frozen", '["vision/layers/7/.*"]')
    assert "layers are stacked, so an address has no layer number" in said


def test_parameters_without_weights(folder, refused):
    parts = f"{{vision: {folder}/clip, llm: {folder}/llm}}"
    said = refused("train", folder / "run.yaml", "--init", parts)
    assert "these parameters have no weights; name them in init.fresh" in said
    assert "projector/layers_0/kernel" in said and "llm/" not in said
    said = refused("train", folder / "run.yaml", "--init.fresh", '["proj/.*"]')
    assert "init.fresh: 'proj/.*': matches no parameter" in said
