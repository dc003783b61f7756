"""The quickstart from nothing to its report, with few pictures and steps; what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from small_run import curve, on_devices, quickly
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import astrollava_jax as al
from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.quickstart import recipe
from astrollava_jax.run.quickstart import check_folder, quickstart

SIZES = recipe.Sizes(48, 40, 12, stage0_steps=3, stage1_steps=2, stage2_steps=2)
QUESTION = "what kind of object is shown?"


@pytest.fixture(scope="module")
def done(tmp_path_factory, compiled) -> Path:
    """A small one, in a folder whose name YAML, a shell and `str.format` read otherwise."""
    folder = tmp_path_factory.mktemp("quick") / "a sky, {mine}: #2 'x'"
    with quickly(compiled), pytest.MonkeyPatch.context() as patch:
        on_devices(patch, 1)  # as whoever tries it has; for eight it compiles twice as long
        quickstart(str(folder), SIZES)
    return folder


def test_it_leaves_ordinary_files(done):
    for name in (
        *(f"data/{split}/dataset_info.json" for split in ("train", "heldout")),
        *(f"stage{number}.yaml" for number in range(3)),
        *(f"parts/{part}/config.json" for part in ("initial", "vision", "llm")),
        *(f"runs/stage{number}/log.jsonl" for number in range(3)),
        *("export/model.safetensors", "export/chat_template.jinja", "samples/first.png"),
        "report.html",
    ):
        assert (done / name).is_file(), name
    assert [len(curve(done / f"runs/stage{number}")) for number in range(3)] == [3, 2, 2]


def test_a_step_is_told_in_the_words_of_the_contract(done):
    lines = (done / "runs" / "stage2" / "log.jsonl").read_text().splitlines()
    facts = json.loads(lines[-1])
    assert set(facts) == {
        *("step", "attempt", "loss", "learned_tokens", "grad_norm", "lr", "seconds"),
        *("samples_per_second", "tokens_per_second_per_chip", "mfu", "input_wait", "packing"),
        *("device_wait", "time", "checkpoint_seconds", "evaluate_seconds"),
        *("skipped_records", "bad_steps", "last_good_checkpoint"),
        *("lr/projector", "lr/llm"),
    }
    assert facts["lr"] == facts["lr/projector"], "the rate of the first group in the file"
    assert (facts["step"], facts["attempt"], facts["skipped_records"]) == (2, 1, 0)
    assert 0 < facts["packing"] <= 1 and facts["learned_tokens"] > 0
    (events,) = (done / "runs" / "stage2" / "tensorboard").iterdir()
    drawn = {v.tag for event in EventFileLoader(str(events)).Load() for v in event.summary.value}
    assert {"loss", "held_out_loss", "grad_norm", "lr"} <= drawn


def test_the_report_tells_all_of_it_in_one_file(done):
    page = (done / "report.html").read_text()
    for words in ("before stage 1", "after stage 1", "before stage 2", "after stage 2", "blind"):
        assert words in page
    assert "12 pictures that no stage saw" in page
    assert str(done) not in page and done.parent.name not in page, "whose machine it was"
    assert "equal within 1e-04" in page
    # Such a small one reaches nothing, and its report must not say otherwise.
    assert "Below what it should reach: " in page and "or better" not in page
    assert len(re.findall(r'src="data:image/png', page)) >= 12
    assert not re.search(r'(src|href)="(?!data:|#)', page), "something is not in the page"


def test_started_again_it_is_complete(done, capsys):
    before = (done / "report.html").read_bytes()
    quickstart(str(done), SIZES)
    assert "complete; the report is" in capsys.readouterr().out
    assert (done / "report.html").read_bytes() == before
    assert main(["train", str(done / "stage1.yaml")]) == COMPLETE
    assert "complete, all 2 steps are done" in capsys.readouterr().out


@pytest.mark.usefixtures("quickly_compiled")
def test_it_is_asked_wherever_it_is_moved(done, tmp_path, capsys):
    picture = str(done / "samples" / "first.png")
    ask = [QUESTION, "--image", picture, "--dtype", "float32", "--max-new-tokens", "16"]
    assert main(["ask", str(done / "runs" / "stage2"), *ask]) == COMPLETE
    answer = capsys.readouterr().out
    model = al.load_model(str(done / "export"), dtype="float32")
    assert answer.strip() == model.generate([picture], [QUESTION], max_new_tokens=16)[0]

    moved = tmp_path / "elsewhere"
    done.rename(moved)
    try:
        ask[2] = str(moved / "samples" / "first.png")
        assert main(["ask", str(moved / "runs" / "stage2"), *ask]) == COMPLETE
        assert capsys.readouterr().out == answer
        (moved / "link").symlink_to(moved / "runs" / "stage2" / "checkpoints" / "2")
        assert main(["ask", str(moved / "link"), *ask]) == COMPLETE
        assert capsys.readouterr().out == answer

        (moved / "parts").rename(moved / "other")
        assert main(["ask", str(moved / "runs" / "stage2"), *ask]) == MISTAKE
        bases = [word for part in ("llm", "vision") for word in ("--base", moved / "other" / part)]
        found = main(["ask", str(moved / "runs" / "stage2"), *ask, *map(str, bases)])
        assert (found, capsys.readouterr().out) == (COMPLETE, answer)
        said = main(["ask", str(moved / "runs" / "stage2"), *ask, *map(str, bases[:2])])
        assert said == MISTAKE and "--base TOWER --base DECODER" in capsys.readouterr().err
    finally:
        if (moved / "other").exists():
            (moved / "other").rename(moved / "parts")
        moved.rename(done)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("layout", ["hf", "llava", "orbax"])
def test_a_loaded_model_is_saved_and_loaded_again(done, layout, tmp_path):
    picture = str(done / "samples" / "first.png")
    model = al.load_model(str(done / "runs" / "stage2"), dtype="float32")
    al.save_model(model, str(tmp_path / "copy"), layout=layout)
    copy = al.load_model(str(tmp_path / "copy"), dtype="float32")
    prompts = [f"<image>\n{QUESTION}"]
    found, expected = (m.logits([picture], prompts) for m in (copy, model))
    assert np.array_equal(found, expected[..., : found.shape[-1]])


def test_a_folder_that_no_quickstart_began(tmp_path):
    texts = recipe.stage_files(str(tmp_path), SIZES)
    check_folder(str(tmp_path / "none"), texts)
    check_folder(str(tmp_path), texts)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"found thesis\.tex: choose another folder with --out"):
        check_folder(str(tmp_path), texts)
    (tmp_path / "stage0.yaml").write_text(texts["stage0.yaml"])
    (tmp_path / "mine.yaml").write_text("out: runs/mine")
    check_folder(str(tmp_path), texts)


def test_a_stage_that_was_changed(tmp_path):
    texts = recipe.stage_files(str(tmp_path), SIZES)
    (tmp_path / "stage1.yaml").write_text(texts["stage1.yaml"].replace("seed: 1", "seed: 7"))
    with pytest.raises(ValueError, match=r"stage1\.yaml: differs from what this quickstart writes"):
        check_folder(str(tmp_path), texts)
