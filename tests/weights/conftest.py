"""One tiny model, as the tests of `weights` find it: in memory, and in other systems' layouts."""

import pytest
import tiny_directories as tiny
import tiny_llava


@pytest.fixture(scope="module")
def model():
    return tiny_llava.torch_model()


@pytest.fixture(scope="module")
def hf(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "hf"
    return folder, tiny.write_hf(folder, model)


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "original"
    return folder, tiny.write_original(folder, model)


@pytest.fixture
def parts(model, tmp_path):
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    return tmp_path / "clip", tmp_path / "llm"
