"""A tower in a run: tuned at a rate of its own, at another image size than it was made for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from PIL import Image
from small_run import arrays, curve
from tiny_llava import assert_close
from transformers import AutoProcessor, LlavaForConditionalGeneration

import astrollava_jax as al
from astrollava_jax.run.config import InitConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import Opened, open_any, open_init
from astrollava_jax.run.train import train
from astrollava_jax.weights.resize import NEWLINE, POSITIONS, interpolate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]

STEPS, SIZE = 3, 42
RATES = {"vision": 1e-3, "projector": 1e-2, "llm": 5e-3}
"""Of the groups, which are named as the parts: of the decoder, adapters alone train."""

LORA = {"rank": 2, "alpha": 4.0, "targets": ["llm/layers/attn/[qv]_proj"]}


def run_file(sky: Path, init: str, out: Path, tower: str) -> str:
    """A run in which the tower is tuned, or frozen."""
    groups = {"vision": "vision/.*", "projector": "projector/.*", "llm": ".*/lora_[ab]"}
    frozen = ["llm/(?!.*/lora_).*"]
    if tower == "frozen":
        frozen.append(groups.pop("vision"))
    rows = [{"name": n, "params": p, "peak_lr": RATES[n]} for n, p in groups.items()]
    optimizer = {"groups": rows, "frozen": frozen, "schedule": {"type": "constant"}}
    file = small_run.run_file(sky, 2, init, out)
    changes = {"steps": STEPS, "lora": LORA, "optimizer": optimizer, "evaluate": None}
    changes["checkpoint"] = {"every_steps": 1, "every_seconds": None}
    Path(file).write_text(small_run.config.dump(small_run.read_run(file, **changes)))
    return file


@pytest.fixture(scope="module")
def tuned(sky, tmp_path_factory) -> Path:
    """A run of three steps that tunes the tower at 42 pixels, where it was made for 28."""
    out = tmp_path_factory.mktemp("tower") / "tuned"
    init = f"{{model: {sky / 'base'}, image_size: {SIZE}}}"
    train(small_run.read_run(run_file(sky, init, out, "tuned")))
    return out


def test_each_part_moves_at_its_own_rate_and_what_is_not_computed_stays(tuned, sky):
    """AdamW's first step is the rate itself, wherever there is a gradient at all."""
    before = open_init(InitConfig(model=str(sky / "base"), image_size=SIZE)).base
    after = {name.removeprefix("trainable/"): a for name, a in arrays(tuned, 1).items()}
    moved = {
        address: np.abs(after[address] - before.read(address).astype(np.float32))
        for address in before.shapes
        if address in after
    }
    assert {address.split("/")[0] for address in moved} == {"vision", "projector"}
    for address, change in moved.items():
        if address.startswith("vision/layers/"):
            # LLaVA reads the output of the last block but one.
            assert not change[-1].any(), address
        elif address.startswith("vision/post_norm"):
            assert not change.any(), address
            continue
        if "k_proj/bias" not in address:  # its true gradient is 0
            assert change.max() == pytest.approx(RATES[address.split("/")[0]], rel=0.02), address
    assert moved[POSITIONS].shape == (1 + 9, 32)


def test_a_resized_run_goes_on_bit_for_bit(tuned, sky, tmp_path):
    file = run_file(
        sky, f"{{model: {sky / 'base'}, image_size: {SIZE}}}", tmp_path / "run", "tuned"
    )
    shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    train(small_run.read_run(file))
    assert json.loads((tuned / "base.json").read_text())["init"]["image_size"] == SIZE
    assert curve(tmp_path / "run") == curve(tuned)
    found, expected = arrays(tmp_path / "run", STEPS), arrays(tuned, STEPS)
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def assert_transformers_answers_as(run: Path, folder: Path, size: int) -> None:
    """Exports a run, merged and in float32, and compares the logits of both."""
    convert(run, folder, "hf", merge=True, dtype="float32")
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8))
    text = "<image> what is this?"
    inputs = AutoProcessor.from_pretrained(folder)(images=picture, text=text, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (size, size)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits.numpy()
    found = al.load_model(str(run), dtype="float32").logits([picture], [text])
    assert_close(found, expected, "logits")


def test_transformers_answers_as_a_resized_run_does(tuned, tmp_path):
    assert_transformers_answers_as(tuned, tmp_path / "hf", SIZE)


def trained(opened: Opened, address: str = POSITIONS) -> np.ndarray:
    return np.asarray(opened.changed[address])


def test_a_run_is_opened_at_another_size_and_grid(tuned, sky):
    now, original = open_any(str(tuned)), open_any(str(sky / "base")).base
    there = open_init(InitConfig(model=str(tuned), image_size=56, grid=((56, 112),)))
    for opened in (there, there.apart()):
        config = opened.source.config
        assert (config.image_facts.size, config.grid) == (56, ((56, 112),))
        assert opened.base.config == config and opened.source.missing == (NEWLINE,)
        assert (opened.init.image_size, opened.init.grid) == (56, ((56, 112),))
        towers = now.source.config.vision, config.vision
        # What was tuned goes on from there; what was not comes from the original by one step.
        assert np.array_equal(trained(opened), interpolate(trained(now), *towers))
        towers = original.config.vision, config.vision
        expected = interpolate(original.read(POSITIONS), *towers)
        assert np.array_equal(opened.base.read(POSITIONS), expected)


def test_a_frozen_tower_stays_as_a_run_before_left_it(tuned, sky, tmp_path):
    """The next run sees 56 pixels, over the tower that was tuned at 42, and takes its adapters."""
    init = f"{{model: {tuned}, image_size: 56}}"
    file = run_file(sky, init, tmp_path / "next", "frozen")
    train(small_run.read_run(file, steps=1))
    facts = json.loads((tmp_path / "next" / "base.json").read_text())
    assert facts["init"]["image_size"] == 56 and POSITIONS in facts["inherited"]
    before, after = (open_any(str(path)) for path in (tuned, tmp_path / "next"))
    towers = before.source.config.vision, after.source.config.vision
    for address in before.changed:
        if address.startswith("vision/"):
            expected = trained(before, address)
            if address == POSITIONS:
                expected = interpolate(expected, *towers)
            assert np.array_equal(trained(after, address), expected), address
    assert_transformers_answers_as(tmp_path / "next", tmp_path / "hf", 56)


def test_a_size_is_a_part_of_what_a_run_is(tuned, sky, tmp_path):
    init = f"{{model: {sky / 'base'}, image_size: 56}}"
    file = run_file(sky, init, tmp_path / "run", "tuned")
    with pytest.raises(ValueError, match=r"init.image_size: 42 -> 56"):
        train(small_run.read_run(file, out=str(tuned)))
