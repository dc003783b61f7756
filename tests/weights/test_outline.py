"""A model's shape without its numbers: the same as of the whole model, whatever its layout."""

import re
from pathlib import Path

import pytest
import tiny_directories as tiny
import tiny_llava
from published import llava_1_5

from astrollava_jax.weights import orbax
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.outline import joined, outline

WEIGHTS = r".*\.(safetensors|bin|index\.json)"


def without_weights(folder: Path) -> str:
    for path in folder.iterdir():
        if re.fullmatch(WEIGHTS, path.name):
            path.unlink()
    assert (folder / "config.json").exists()
    return str(folder)


@pytest.mark.parametrize("make", [tiny_llava.torch_model, tiny_llava.torch_next])
@pytest.mark.parametrize("write", [tiny.write_hf, tiny.write_original])
def test_config_files_alone_give_the_shape_of_the_whole_model(make, write, tmp_path):
    write(tmp_path / "model", make())
    expected = open_model(tmp_path / "model").config
    found = outline(without_weights(tmp_path / "model"))
    assert found.config == expected
    assert found.tokenizer_folder == str(tmp_path / "model")
    assert found.notes == ()


def test_two_towers_without_weights(parts):
    expected = join(*parts).config
    found = joined(*map(without_weights, parts))
    assert found.config == expected
    assert expected.llm.vocab_size > tiny.WORDS, "<image> and a pad have found room"


def test_a_model_in_our_own_layout_without_its_parameters(hf, tmp_path):
    source = open_model(hf[0])
    orbax.write(tmp_path, source)
    (tmp_path / "params").rename(tmp_path.parent / "elsewhere")
    assert outline(str(tmp_path)).config == source.config


@pytest.mark.parametrize(
    ("name", "size"),
    [("llava-1.5-7b", "7b"), ("models/llava-1.5-7b-hf", "7b"), ("llava-1.5-13b", "13b")],
)
def test_a_published_name_gives_the_published_shape(name, size):
    found = outline(name)
    assert found.config == llava_1_5(size, 32_064)
    (note,) = found.notes
    assert note.startswith(f"{name} is not here: the published shape of llava-1.5-{size}")


def test_published_towers_are_joined_with_room_for_the_image():
    found = joined("models/clip-vit-large-patch14-336", "models/vicuna-7b-v1.5")
    assert found.config == llava_1_5("7b", 32_064)  # vicuna has 32,000 words
    assert len(found.notes) == 2


def test_the_published_model_with_a_grid():
    found = outline("models/llava-v1.6-vicuna-7b-hf").config
    assert found.llm == llava_1_5("7b", 32_064).llm
    assert found.grid is not None and (672, 672) in found.grid and len(found.grid) == 5


def test_what_is_neither_here_nor_published_is_refused_with_the_names(tmp_path, parts):
    with pytest.raises(FileNotFoundError, match=r"found none; the names are: llava-1\.5-7b, "):
        outline(str(tmp_path / "llava-2-7b"))
    with pytest.raises(FileNotFoundError, match="expected the directory of a decoder"):
        joined(str(parts[0]), "vicuna")
    with pytest.raises(ValueError, match="expected a vision tower, found a bare decoder"):
        joined(str(parts[1]), str(parts[1]))
