"""convert: what it says, and what it refuses."""

import json

import pytest
import tiny_directories as tiny
import tiny_llava

from astrollava_jax.run.convert import convert
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
