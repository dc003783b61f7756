"""From a run directory back to PyTorch, and to whatever else opens a model."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import small_run
import tiny_directories as tiny
import torch
from PIL import Image
from small_run import arrays
from tiny_llava import assert_close
from transformers import AutoProcessor, LlavaForConditionalGeneration

import astrollava_jax as al
from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.run.convert import convert
from astrollava_jax.run.train import train

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TRAINED = ("language_model.", "multi_modal_projector.")
"""What stage 2 trains, in the words of transformers 4."""


@pytest.fixture(scope="module")
def exported(stage2, tmp_path_factory) -> Path:
    """Stage 2, which began in the run directory of stage 1, for transformers."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    convert(stage2.out, folder, "hf")
    return folder


def picture() -> Image.Image:
    """A picture that is not square: the run made them so by padding."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8))


def prompt(folder: Path) -> str:
    """A question about it, as transformers words it."""
    content = [{"type": "image"}, {"type": "text", "text": "what color is the galaxy?"}]
    return AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def their_logits(folder: Path) -> np.ndarray:
    """Scores of stock transformers; no tensor is missing, left over or of another shape."""
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=picture(), text=prompt(folder), return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def our_logits(model: Path, folder: Path) -> np.ndarray:
    """Scores of any model for the prompt of a directory."""
    loaded = al.load_model(str(model), dtype="float32")
    return loaded.logits([picture()], [prompt(folder)])


def test_transformers_answers_as_the_export_does(exported):
    assert_close(our_logits(exported, exported), their_logits(exported), "logits")


def test_transformers_answers_as_the_run_does(stage2, exported, tmp_path):
    """The export of a base in float16 rounds what was trained; one in float32 does not."""
    convert(stage2.out, tmp_path / "hf", "hf", dtype="float32")
    theirs = their_logits(tmp_path / "hf")
    assert_close(our_logits(stage2.out, exported), theirs, "logits")
    assert np.abs(theirs - their_logits(exported)).max() < 0.02 * np.abs(theirs).max()


def test_tensors_are_the_bases_or_rounded_to_its_dtype(sky, stage2, exported):
    base, found = tiny.read_all(sky / "base"), tiny.read_all(exported)
    frozen = {name for name in base if not name.startswith(TRAINED)}
    tiny.assert_same({n: found[n] for n in frozen}, {n: base[n] for n in frozen})
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in base.items()}
    trained = arrays(stage2.out, small_run.STEPS)
    for name, address in (
        ("multi_modal_projector.linear_1.weight", "projector/layers_0/kernel"),
        ("multi_modal_projector.linear_2.bias", "projector/layers_1/bias"),
        ("language_model.lm_head.weight", "llm/lm_head/kernel"),
    ):
        expected = trained[f"trainable/{address}"].T.astype(np.float16)
        assert np.array_equal(found[name].numpy(), expected), name


def test_a_checkpoint_is_exported_by_its_folder(stage2, exported, tmp_path):
    convert(stage2.out / "checkpoints" / "4", tmp_path / "hf", "hf")
    found = tiny.read_all(tmp_path / "hf")["language_model.lm_head.weight"].numpy()
    expected = arrays(stage2.out, 4)["trainable/llm/lm_head/kernel"].T.astype(np.float16)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, tiny.read_all(exported)["language_model.lm_head.weight"])


def test_the_layout_of_llava(stage2, exported, tmp_path):
    convert(stage2.out, tmp_path / "llava", "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["model_type"] == "llava_llama" and config["image_aspect_ratio"] == "pad"
    names = ("model.mm_projector.0.weight", "model.layers.1.mlp.up_proj.weight")
    assert set(names) <= tiny.read_all(tmp_path / "llava").keys()
    # The spare row of the word table is no word: it is not written there.
    words = small_run.ROWS - 1
    ours = our_logits(tmp_path / "llava", exported)
    assert_close(ours, our_logits(exported, exported)[..., :words], "logits")
    convert(tmp_path / "llava", tmp_path / "hf", "hf")
    expected = tiny.read_all(exported)
    for table in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        expected[table] = expected[table][:words]
    tiny.assert_same(tiny.read_all(tmp_path / "hf"), expected)


@contextlib.contextmanager
def moved(folder: Path) -> Iterator[Path]:
    """A folder under another name, for a while."""
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    folder.rename(elsewhere)
    try:
        yield elsewhere
    finally:
        elsewhere.rename(folder)


def test_a_run_names_the_original_directory(sky, stage1, stage2, exported, tmp_path):
    text = (stage2.out / "base.json").read_text()
    facts = json.loads(text)
    assert {fact["folder"] for fact in facts["frozen"].values()} == {str(sky / "base")}
    assert all(address.startswith("vision/") for address in facts["frozen"])
    assert facts["init"]["model"] == str(sky / "base") and facts["inherited"] == []
    assert str(stage1.out) not in text
    with moved(stage1.out):
        convert(stage2.out, tmp_path / "hf", "hf")
    tiny.assert_same(tiny.read_all(tmp_path / "hf"), tiny.read_all(exported))


def test_a_part_that_a_run_before_trained_travels_along(sky, stage1, tmp_path):
    """The projector of stage 1, frozen in a run that trains the last norm alone."""
    file = small_run.run_file(sky, 2, small_run.model_at(stage1.out), tmp_path / "run")
    groups = [{"name": "norm", "params": "llm/norm/scale", "peak_lr": 0.01}]
    frozen = ["vision/.*", "projector/.*", "llm/(?!norm/).*"]
    optimizer = {"groups": groups, "frozen": frozen, "schedule": {"type": "constant"}}
    train(small_run.read_run(file, optimizer=optimizer, steps=1, evaluate=None))
    facts = json.loads((tmp_path / "run" / "base.json").read_text())
    trained = arrays(stage1.out, small_run.STEPS)
    projector = {name.removeprefix("trainable/") for name in trained if name.startswith("train")}
    assert set(facts["inherited"]) == projector
    convert(stage1.out, tmp_path / "one", "hf")
    with moved(stage1.out):
        convert(tmp_path / "run", tmp_path / "two", "hf")
    before, after = tiny.read_all(tmp_path / "one"), tiny.read_all(tmp_path / "two")
    assert [n for n in before if not after[n].equal(before[n])] == [
        "language_model.model.norm.weight"
    ]


def test_a_base_that_moved(sky, stage1, stage2, exported, tmp_path, capsys):
    command = ["convert", str(stage2.out), str(tmp_path / "hf"), "--layout", "hf"]
    with moved(sky / "base") as elsewhere:
        assert main(command) == MISTAKE
        assert f"{sky / 'base'}" in capsys.readouterr().err
        assert main([*command, "--base", str(elsewhere)]) == COMPLETE
        for run in (stage1, stage2):
            assert main(["train", run.file, "--base", str(elsewhere)]) == COMPLETE
            assert f"{run.out}: complete" in capsys.readouterr().out
    tiny.assert_same(tiny.read_all(tmp_path / "hf"), tiny.read_all(exported))


def test_a_base_whose_words_have_changed(sky, stage2, capsys):
    template = sky / "base" / "chat_template.jinja"
    before = template.read_bytes()
    template.write_bytes(before + b"\n")
    try:
        assert main(["ask", str(stage2.out), "what is this?"]) == MISTAKE
    finally:
        template.write_bytes(before)
    told = capsys.readouterr().err
    kept = stage2.out / "files" / "chat_template.jinja"
    assert f"chat_template.jinja: expected what {kept} holds" in told
    assert kept.read_bytes() == before


def test_an_unfinished_run_is_called_so(stage2, tmp_path, capsys):
    convert(stage2.out / "checkpoints" / "4", tmp_path / "hf", "hf")
    assert f"note     {stage2.out} is taken as it was after step 4 of 8" in capsys.readouterr().out
    convert(stage2.out, tmp_path / "whole", "hf")
    assert "note" not in capsys.readouterr().out


def test_only_an_adapter_or_a_run_has_a_base(sky, tmp_path, capsys):
    command = ["convert", str(sky / "base"), str(tmp_path / "hf"), "--layout", "hf"]
    assert main([*command, "--base", str(sky / "base")]) == MISTAKE
    assert "only an adapter or a run has a base" in capsys.readouterr().err


def test_a_base_with_another_frozen_tensor(sky, stage2, tmp_path, capsys):
    shutil.copytree(sky / "base", tmp_path / "base")
    tensors = tiny.read_all(tmp_path / "base")
    for name in ("vision_tower.vision_model.pre_layrnorm.weight", "language_model.lm_head.weight"):
        tensors[name] = 2 * tensors[name]
    safetensors.torch.save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    command = ["convert", str(stage2.out), str(tmp_path / "hf"), "--layout", "hf"]
    assert main([*command, "--base", str(tmp_path / "base")]) == MISTAKE
    told = capsys.readouterr().err
    with moved(sky / "base"):  # a base that changed where it stood is told just the same
        shutil.copytree(tmp_path / "base", sky / "base")
        try:
            assert main(command) == MISTAKE
            assert capsys.readouterr().err == told.replace(str(tmp_path), str(sky))
        finally:
            shutil.rmtree(sky / "base")
    # The head was trained since: what it was before does not matter.
    assert "vision/pre_norm/scale" in told and "lm_head" not in told
    assert not (tmp_path / "hf").exists()
