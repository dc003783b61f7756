"""Which rows and which model a step is planned with, where records and weights are not there."""

import dataclasses
from pathlib import Path

import pytest
import small_run
import tiny_llava

from astrollava_jax import config
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.run.planned_model import planned_model
from astrollava_jax.run.planned_rows import planned_rows
from astrollava_jax.run.records import training_data
from astrollava_jax.weights.outline import outline

CONFIGS = Path(__file__).parents[3] / "configs"


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
    tiles = 5 if "next" in recipe else 1
    assert found.shape == (run.batch.length, learned, images, images // tiles)
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
        text = (folder / "run.yaml").read_text()
        text = text.replace(f"{folder}/run", str(tmp_path / out))
        file.write_text(text.replace(f"{folder}/hf", str(tmp_path / model)))

    write(a, "one", "one")
    with pytest.raises(ValueError, match=f"in a circle.*: {a} begins from {a}; one of them must"):
        planned_model(InitConfig(model=str(tmp_path / "one")), str(tmp_path))
    write(a, "one", "two")
    write(b, "two", "one")
    with pytest.raises(ValueError, match=f": {b} begins from {a} begins from {b};"):
        planned_model(InitConfig(model=str(tmp_path / "two")), str(tmp_path))


def test_a_row_that_may_hold_fewer_tiles_than_a_picture_is_the_mistake_that_train_tells():
    run = config.load(RunConfig, str(CONFIGS / "astro_next_stage2.yaml"))
    run = dataclasses.replace(run, batch=dataclasses.replace(run.batch, max_images=4))
    facts = outline("llava-v1.6-vicuna-7b").config.image_facts
    with pytest.raises(ValueError, match=r"batch\.max_images is 4, but one picture takes up to 5"):
        planned_rows(run, facts, 1, None)
