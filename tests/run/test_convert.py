"""convert: what it says, and what it refuses."""

import json

import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
from transformers import LlavaNextForConditionalGeneration

from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.run.config import InitConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_init
from astrollava_jax.weights.directory import open_model


@pytest.fixture(scope="module")
def model():
    return tiny_llava.torch_model()


def test_a_conversion_says_what_was_read_and_written(model, tmp_path, capsys):
    tiny.write_original(tmp_path / "in", model)
    convert(tmp_path / "in", tmp_path / "out", "hf", dtype="float32")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"read     {tmp_path / 'in'} (layout llava): ")
    assert "float16" in lines[0]
    assert "the vocabulary grew from 61 to 64 rows" in lines[1]
    assert lines[2].startswith(f"written  {tmp_path / 'out'}: layout hf, chat_template.jinja, ")
    assert str(open_model(tmp_path / "out").dtype("llm/norm/scale")) == "float32"


def test_parts_are_joined_with_the_same_fresh_projector_each_time(model, tmp_path, capsys):
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    for name in ("one", "two"):
        convert(None, tmp_path / name, "hf", vision=tmp_path / "clip", llm=tmp_path / "llm")
    assert "the projector is fresh (seed 0)" in capsys.readouterr().out
    tiny.assert_same(tiny.read_all(tmp_path / "one"), tiny.read_all(tmp_path / "two"))
    assert json.loads((tmp_path / "one" / "config.json").read_text())["image_token_index"] == 61


def test_what_convert_refuses(model, tmp_path):
    tiny.write_hf(tmp_path / "in", model)
    with pytest.raises(ValueError, match="expected a model's directory, or --vision DIR and --llm"):
        convert(None, tmp_path / "out", "hf", vision=tmp_path / "in")
    with pytest.raises(ValueError, match="--dtype: expected one of float16, bfloat16, float32"):
        convert(tmp_path / "in", tmp_path / "out", "hf", dtype="int8")
    with pytest.raises(ValueError, match="a tower is added only to the layout llava"):
        convert(tmp_path / "in", tmp_path / "out", "hf", vision=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_what_is_read(model, tmp_path):
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    before = sorted(path for path in tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(tmp_path / "llm")
    for target in (tmp_path / "clip" / "a" / "b", tmp_path / "link" / "out"):
        with pytest.raises(ValueError, match=rf"DST {target} lies in .*: choose a place outside"):
            convert(None, target, "hf", vision=tmp_path / "clip", llm=tmp_path / "llm")
    (tmp_path / "link").unlink()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    # A name that only begins alike is another place.
    convert(None, tmp_path / "clip2", "hf", vision=tmp_path / "clip", llm=tmp_path / "llm")


def test_no_checkpoint_is_added_to_a_run(tmp_path):
    """A folder that is a number would be taken for a step."""
    (tmp_path / "run" / "checkpoints" / "8").mkdir(parents=True)
    tiny.write_json(tmp_path / "run", "base.json", {})
    target = tmp_path / "run" / "checkpoints" / "9"
    with pytest.raises(ValueError, match=f"DST {target} lies in {tmp_path}/run, which is read"):
        convert(tmp_path / "run" / "checkpoints" / "8", target, "orbax")


def test_rows_that_the_original_layout_has_not_are_told(model, tmp_path, capsys):
    tiny.write_hf(tmp_path / "hf", model)
    convert(tmp_path / "hf", tmp_path / "llava", "llava")
    told = "note     the layout llava has no <image> and no pad: rows 61 to 63 are left out"
    assert told in capsys.readouterr().out.splitlines()
    assert tiny.read_all(tmp_path / "llava")["lm_head.weight"].shape == (61, 48)


def test_a_model_with_a_grid_gets_another_size_with_other_canvases(tmp_path, capsys):
    tiny.write_hf(tmp_path / "in", tiny_llava.torch_next())
    argv = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "hf"]
    assert main([*argv, "--image-size", "42"]) == MISTAKE
    told = capsys.readouterr().err
    assert f"--image-size for {tmp_path}/in: grid: expected canvases (height, width) of" in told
    assert main([*argv, "--image-size", "42", "--grid", "[[42, 84], [84, 84]]"]) == COMPLETE
    again = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert again.config.vision_config.image_size == 42
    assert again.config.image_grid_pinpoints == [[42, 84], [84, 84]]
    source = open_model(tmp_path / "out")
    assert source.config.grid == ((42, 84), (84, 84)) and source.image_mode == "anyres"
    before = open_model(tmp_path / "in").read("image_newline/embedding")
    assert np.array_equal(source.read("image_newline/embedding"), before)


def test_a_first_grid_adds_the_vector_that_ends_a_line(model, tmp_path, capsys):
    tiny.write_hf(tmp_path / "in", model)
    convert(tmp_path / "in", tmp_path / "out", "hf", grid=((28, 56),), seed=5)
    assert "note     the image_newline is fresh (seed 5)" in capsys.readouterr().out
    source = open_model(tmp_path / "out")
    assert source.config.grid == ((28, 56),) and source.image_mode == "anyres"
    assert 0.5 < source.read("image_newline/embedding").std() * 48**0.5 < 1.5
    projector = open_model(tmp_path / "in").fingerprint("projector/layers_0/kernel")
    assert source.fingerprint("projector/layers_0/kernel") == projector


def test_a_part_that_was_given_as_another_is_told_in_one_sentence(model, tmp_path):
    tiny.write_hf(tmp_path / "hf", model)
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    tiny.write_original(tmp_path / "llava", model, tower=False)
    hf, clip, llm, llava = (tmp_path / name for name in ("hf", "clip", "llm", "llava"))
    whole = f"--vision {hf}: expected the directory of a vision tower, found a whole LLaVA"
    cases = {
        (llava, hf, None): whole,
        (None, hf, llm): whole,
        (None, clip, hf): f"--llm {hf}: expected the directory of a bare decoder, found a whole",
        (None, llm, clip): f"--vision {llm} holds a bare decoder and --llm {clip} a vision tower: "
        "exchange the two",
    }
    for (source, vision, decoder), said in cases.items():
        with pytest.raises(ValueError, match=said) as error:
            convert(source, tmp_path / "out", "hf", vision=vision, llm=decoder)
        assert "\n" not in str(error.value)


def test_a_run_is_told_of_its_own_keys(model, tmp_path):
    tiny.write_hf(tmp_path / "hf", model)
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    hf, clip, llm = (str(tmp_path / name) for name in ("hf", "clip", "llm"))
    for said, init in {
        f"init.vision {hf}: expected the directory of a vision tower": {"vision": hf, "llm": llm},
        f"so that init.llm {llm} has no place": {"model": hf, "llm": llm},
        f"so that init.base {clip} has no place": {"model": hf, "base": clip},
        f"init.grid for {hf}: grid: expected canvases": {"model": hf, "grid": ((28, 29),)},
        f"init.image_size for {hf}: 100000 pixels make 7142 x 7142 patches of 14 pixels: "
        "expected at most 4096 patches, which is up to 909 pixels": {
            "model": hf, "image_size": 100000,
        },
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            open_init(InitConfig(**init))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "-1", "expected a number from 0 to 2**31 - 1, found '-1'"),
        ("--seed", str(2**31), "found '2147483648'"),
        ("--grid", "28", "expected canvases [[height, width], ...] in pixels, found '28'"),
        ("--grid", "[[28, 56.5]]", "found '[[28, 56.5]]'"),
        ("--grid", "[]", "found '[]'"),
    ],
)
def test_an_option_that_cannot_be(option, value, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "one", "two", "--layout", "hf", f"{option}={value}"])
    assert exit_.value.code == MISTAKE
    assert f"argument {option}: " in (told := capsys.readouterr().err) and said in told
