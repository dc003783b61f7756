"""A model that saw one square image gets a grid, and learns from pictures of any resolution."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
import yaml
from PIL import Image
from small_run import arrays, curve

import astrollava_jax as al
from astrollava_jax import files
from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.data.example import Turn
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.inference import generate
from astrollava_jax.quickstart import examples
from astrollava_jax.quickstart.pictures import encode_png
from astrollava_jax.run.config import InitConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_any, open_init
from astrollava_jax.training.metrics import read_log

pytestmark = pytest.mark.usefixtures("quickly_compiled")

GRID = ((28, 56), (56, 28), (56, 56))
SHAPES = ((56, 28), (28, 56), (56, 56), (40, 56))
"""Of the pictures, (height, width)."""

COUNT = 16
NEWLINE = "image_newline/embedding"
GROUPS = {
    1: {"(projector|image_newline)/.*": 1e-2},
    2: {"(projector|image_newline)/.*": 1e-3, "llm/.*": 2e-3, "vision/.*": 2e-4},
}
FROZEN = {1: ["vision/.*", "llm/.*"], 2: []}


@pytest.fixture(scope="module")
def folder(sky) -> Path:
    """Records: dialogues about one picture, about two, and about none."""
    folder, told = sky / "any", []
    drawn = list(examples.examples(9, COUNT, size=56))
    for number, one in enumerate(drawn):
        one = dataclasses.replace(one, images=(cropped(one.images[0], number),))
        if number % 5 == 3:
            other = drawn[number - 1]
            turns = (Turn("human", "<image> what is this?"), one.turns[1])
            turns += (Turn("human", "and <image> this?"), other.turns[1])
            images = (*one.images, cropped(other.images[0], number + 1))
            one = dataclasses.replace(one, images=images, turns=turns)
        elif number % 5 == 4:
            one = dataclasses.replace(one, images=())
        told.append(one)
    write_set(files.join(folder, "train"), told, name="sky", split="train")
    return folder


def cropped(encoded: bytes, number: int) -> bytes:
    high, wide = SHAPES[number % len(SHAPES)]
    return encode_png(np.asarray(Image.open(io.BytesIO(encoded)))[:high, :wide])


def run_file(folder: Path, stage: int, out: str, **init) -> str:
    """The YAML file of a stage of four steps, two to an epoch."""
    groups = [
        {
            "name": pattern.split("/")[0].strip("()").split("|")[0],
            "params": pattern,
            "peak_lr": rate,
        }
        for pattern, rate in GROUPS[stage].items()
    ]
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump({
        "out": str(folder / out), "seed": 3, "steps": 4, "init": init,
        "data": [{
            "records": str(folder / "train"), "image": "anyres",
            "template": {1: "plain", 2: "model"}[stage],
        }],
        "batch": {"samples": COUNT // 2, "length": 160},
        "optimizer": {
            "groups": groups, "frozen": FROZEN[stage],
            "schedule": {"type": "cosine", "warmup_fraction": 0.1},
        },
        "precision": {"compute": "float32", "frozen": "float32"},
        "checkpoint": {"every_seconds": None, "every_steps": 2},
        "workers": 0, "log": {"tensorboard": False},
    }))  # fmt: skip
    return str(path)


@pytest.fixture(scope="module")
def two_devices():
    with pytest.MonkeyPatch.context() as patch:
        small_run.on_devices(patch, 2)
        yield


@pytest.fixture(scope="module")
def stage1(sky, folder, two_devices, quickly_compiled) -> str:
    """The projector and the new vector begin from nothing."""
    file = run_file(
        folder, 1, "one", model=str(sky / "base"), grid=[list(canvas) for canvas in GRID],
        fresh=["projector/.*", "image_newline/.*"],
    )  # fmt: skip
    assert main(["train", file]) == COMPLETE
    return file


@pytest.fixture(scope="module")
def stage2(stage1, folder) -> str:
    """Everything trains, the tower too."""
    file = run_file(folder, 2, "two", model=str(folder / "one"))
    assert main(["train", file]) == COMPLETE
    return file


def test_both_stages_learn(stage2, folder):
    for out in ("one", "two"):
        losses = [step[0] for step in curve(folder / out)]
        assert len(losses) == 4 and losses[-1] < losses[0]
        assert not any(
            facts["skipped_records"] for facts in read_log(str(folder / out / "log.jsonl"))
        )
    trained = [arrays(folder / out, 4) for out in ("one", "two")]
    assert {key.split("/")[1] for key in trained[0] if key.startswith("trainable")} == {
        "projector", "image_newline",
    }  # fmt: skip
    (first, second) = (found[f"trainable/{NEWLINE}"] for found in trained)
    assert first.shape == (1, 48) and not np.array_equal(first, second)
    tower = [key for key in trained[1] if key.startswith("trainable/vision/layers/attn/q_proj")]
    before = open_any(str(folder / "one")).source
    for key in tower:
        assert not np.array_equal(trained[1][key], before.read(key.removeprefix("trainable/")))


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_goes_on_bit_for_bit(stage, stage1, stage2, folder, tmp_path):
    out = {1: "one", 2: "two"}[stage]
    shutil.copytree(folder / out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert (
        main(["train", {1: stage1, 2: stage2}[stage], "--out", str(tmp_path / "run")]) == COMPLETE
    )
    assert curve(tmp_path / "run") == curve(folder / out)
    found, expected = arrays(tmp_path / "run", 4), arrays(folder / out, 4)
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def test_the_run_is_a_model_with_the_grid(stage2, folder, tmp_path):
    opened = open_any(str(folder / "two"))
    assert opened.source.config.grid == opened.init.grid == GRID
    assert opened.image_mode == "anyres" and not opened.source.missing
    convert(folder / "two", tmp_path / "ours", "orbax", dtype="float32")
    pictures = [np.zeros((*shape, 3), np.uint8) + 90 for shape in SHAPES]
    texts = ["<image> what is this?"] * len(pictures)
    runs = al.load_model(str(folder / "two"), dtype="float32")
    ours = al.load_model(str(tmp_path / "ours"), dtype="float32")
    assert ours.config == runs.config and ours.image_mode == "anyres"
    found = runs.logits(pictures, texts)
    assert np.array_equal(ours.logits(pictures, texts), found)


def test_the_grid_outlives_a_base_that_moved(stage2, sky, folder, tmp_path):
    shutil.copytree(sky / "base", tmp_path / "moved")
    opened = open_any(str(folder / "two"), bases=[str(tmp_path / "moved")])
    assert opened.source.config.grid == opened.init.grid == GRID
    assert opened.init.model == str(tmp_path / "moved")


def test_a_run_may_begin_with_another_grid(stage1, folder):
    opened = open_init(InitConfig(model=str(folder / "one"), grid=GRID[:1]))
    assert opened.source.config.grid == opened.base.config.grid == opened.init.grid == GRID[:1]
    assert not opened.source.missing and opened.base.missing == (NEWLINE,)
    trained = arrays(folder / "one", 4)[f"trainable/{NEWLINE}"]
    assert np.array_equal(opened.source.read(NEWLINE), trained.astype(np.float16))


def test_many_shapes_are_asked_and_little_is_compiled(stage2, folder):
    model = al.load_model(str(folder / "two"), dtype="float32")
    compiled = generate._compiled(generate.complete, "room")
    before = compiled._cache_size()
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in rng.integers(20, 60, (30, 2))
    ]
    pictures = [[one, other] for one, other in zip(pictures[::2], pictures[1::2])]
    counts = {len(model._question("what is this?", pair).images) for pair in pictures}
    assert counts == {6, 8, 10}
    answers = model.generate(pictures, ["what is this?"] * len(pictures), max_new_tokens=3)
    assert len(answers) == len(pictures)
    # One for each of 6, 8 and 12 images; prompts of 64 positions and of 96.
    assert compiled._cache_size() - before <= 5


def test_what_a_grid_needs_is_said_at_the_door(sky, folder, tmp_path, capsys):
    def refused(*changes: str, **init) -> str:
        file = run_file(folder, 1, "refused", model=str(sky / "base"), **init)
        assert main(["train", file, "--out", str(tmp_path / "refused"), *changes]) == MISTAKE
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    grid = [list(canvas) for canvas in GRID]
    assert f"name them in init.fresh to make them from the seed:\n  {NEWLINE}" in refused(grid=grid)
    told = refused()
    assert "image: anyres" in told and "init.grid" in told
    told = refused(grid=[[28, 40]])
    assert "multiples of the tower's 28 pixels, found (28, 40)" in told
