"""Mistakes, told at the door: exit 2, one screen, what is wrong and what to do."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import jax.numpy as jnp
import pytest
import tiny_directories as tiny
import tiny_llava
import tiny_records
from orbax.checkpoint import v1 as ocp

import astrollava_jax.cli
from astrollava_jax.cli import verify
from astrollava_jax.cli.main import COMMANDS, FAILED, MISTAKE, main
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState

SCREEN = 45
"""Lines of a terminal."""

RUN = """
out: {folder}/run
steps: 1
init: {{model: {folder}/hf}}
data: [{{records: {folder}/grey, template: plain}}]
batch: {{samples: 8, length: 64}}
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {{type: constant}}
workers: 0
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model in several layouts, a record set, and the file of a run on them."""
    folder = tmp_path_factory.mktemp("door")
    model = tiny_llava.torch_model()
    tiny.write_hf(folder / "hf", model)
    tiny.write_parts(folder / "clip", folder / "llm", model)
    tiny_records.write(folder / "grey", 16)
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns what is said."""

    def run(*argv: object) -> str:
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit_:  # argparse's own way out
            code = exit_.code
        said = capsys.readouterr().err
        assert code == MISTAKE, said
        assert len(said.splitlines()) <= SCREEN, said
        assert "Traceback" not in said
        return said

    return run


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


def test_a_missing_model(folder, refused):
    for argv in (
        ("train", folder / "run.yaml", "--init.model", folder / "none"),
        ("ask", folder / "none", "What is this?"),
        ("convert", folder / "none", folder / "out", "--layout", "hf"),
    ):
        assert f"{folder}/none: expected the directory of a model, found none" in refused(*argv)


def test_a_model_of_unknown_layout(folder, refused, tmp_path):
    said = refused("ask", folder / "grey", "What is this?")
    assert f"{folder}/grey: unknown layout. Looked for" in said
    assert re.search(r"found .*dataset_info\.json", said)
    tiny.write_json(tmp_path, "config.json", {"model_type": "whisper"})
    said = refused("train", folder / "run.yaml", "--init.model", tmp_path)
    assert "found model_type 'whisper' in config.json" in said
    assert "--vision DIR --llm DIR" in refused("ask", folder / "llm", "What is this?")


def test_a_tokenizer_of_another_model(folder, refused, tmp_path):
    shutil.copytree(folder / "hf", tmp_path / "hf")
    words = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids |= {f"word{number}": tiny.IMAGE_ID + number for number in range(9)}
    ids |= {"<image>": 70, "<pad>": 71}
    for token in words["added_tokens"]:
        token["id"] = ids[token["content"]]
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(words))
    said = refused("train", folder / "run.yaml", "--init.model", tmp_path / "hf")
    assert f"{tmp_path}/hf: the tokenizer does not fit the model: it has 70 words" in said
    assert "the embedding 64 rows" in said
    assert f"{tmp_path}/hf: the tokenizer does not fit" in refused("ask", tmp_path / "hf", "What?")


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


def test_a_picture_that_is_none(folder, refused):
    argv = ("ask", folder / "hf", "What is this?", "--image")
    assert f"{folder}/none.png: no such file or directory" in refused(*argv, folder / "none.png")
    assert f"{folder}/grey: is a directory" in refused(*argv, folder / "grey")
    broken = folder / "broken.png"
    broken.write_bytes(tiny_records.picture(7)[:40])
    assert f"{broken}: cannot decode this picture of 40 bytes" in refused(*argv, broken)


def test_what_convert_refuses(folder, refused):
    there, gone = folder / "grey", folder / "gone"
    said = refused("convert", folder / "hf", there, "--layout", "hf")
    assert f"{there} exists: choose another name, or remove it first" in said
    assert "invalid choice: 'gguf'" in refused("convert", folder / "hf", gone, "--layout", "gguf")
    assert "expected SRC DST, or DST alone with --vision and --llm" in refused(
        "convert", folder / "hf", "--layout", "hf"
    )
    assert f"has a decoder of its own, so that --llm {folder}/llm has no place" in refused(
        "convert", folder / "hf", "--llm", folder / "llm", gone, "--layout", "hf"
    )
    said = refused("convert", "--vision", folder / "llm", "--llm", folder / "llm", gone,
                   "--layout", "hf")  # fmt: skip
    assert f"{folder}/llm: expected the directory of a vision tower, found a bare decoder" in said
    assert not gone.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "the following arguments are required: RUN.yaml"),
        (["train", "one.yaml", "two.yaml"], "unrecognized arguments: two.yaml"),
        (["ask"], "the following arguments are required: MODEL, question"),
        (["ask", "model", "question", "answer"], "unrecognized arguments: answer"),
        (["convert", "--layout", "hf"], "required: [SRC] DST"),
        (["convert", "one", "two", "three", "--layout", "hf"], "expected SRC DST"),
        (["trian"], "invalid choice: 'trian'"),
    ],
)
def test_words_too_few_and_too_many(argv, message, refused):
    said = refused(*argv)
    assert message in said
    assert "usage: astrollava" in said


def test_without_a_command_the_commands_that_work_are_listed(capsys):
    assert main([]) == MISTAKE
    bare = capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == bare
    listed = re.findall(r"^  (\w+) ", bare.split("commands:")[1], re.MULTILINE)
    modules = {path.stem for path in Path(astrollava_jax.cli.__file__).parent.glob("*.py")}
    assert listed == list(COMMANDS)
    assert set(listed) == modules - {"__init__", "main", "options", "streams", "supervisor"}
    assert len(bare.splitlines()) <= SCREEN


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_in_one_screen(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert exit_.value.code == 0
    assert said.startswith(f"usage: astrollava {command}")
    assert len(said.splitlines()) <= SCREEN


def test_options_may_stand_anywhere(folder, capsys):
    words = [
        "--batch.samples",
        "4",
        "--dry-run",
        str(folder / "run.yaml"),
        "--out=" + str(folder / "out"),
    ]
    assert main(["train", *words]) == 0
    assert "1 steps of 4 samples" in capsys.readouterr().out


def test_a_full_disk_is_told_with_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    checkpoints.last_good = 5
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(ocp, "save_checkpointables_async", Mock(side_effect=full))
    state = TrainState({}, AdamState(jnp.int32(0), {}, {}))
    monkeypatch.setattr(verify, "main", lambda _: checkpoints.save(state, Progress(step=6), {}))
    assert main(["verify"]) == FAILED
    said = capsys.readouterr().err
    assert f"{tmp_path}/6: this checkpoint could not be saved" in said
    assert f"No space left on device); the last good one is {tmp_path}/5" in said
    monkeypatch.setattr(verify, "main", Mock(side_effect=full))
    assert main(["verify"]) == FAILED
    assert capsys.readouterr().err == (
        "astrollava: no room left on the disk: make some, start again\n"
    )
