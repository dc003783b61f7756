"""The proof at full size, made with a very small model, and that it sees what is wrong."""

import numpy as np
import pytest
from transformers import AutoConfig, LlavaForConditionalGeneration

from astrollava_jax import files
from astrollava_jax.bench import full_size, random_llava
from astrollava_jax.bench.random_llava import FULL, TINY


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("work"))
    assert full_size.main(["--work", path, "--tiny", "--steps", "write,import,export"]) == 0
    return path


def test_every_tensor_comes_back(work):
    summary = files.read_json_object(files.join(work, "full_size.json"))
    tensors = summary["write"]["tensors"]
    for layout in ("hf", "llava"):
        assert summary["export"][layout]["tensors"] == tensors
        assert summary["export"][layout]["faults"] == []
        assert 0 < summary["export"][layout]["held_gb"] < summary["export"][layout]["resident_gb"]


def test_both_programs_give_the_same_scores(work):
    full_size.main(["--work", work, "--tiny", "--steps", "forward"])
    found = files.read_json_object(files.join(work, "full_size.json"))["forward"]
    same, rounded = found["float32"], found["bfloat16"]
    assert (same["positions"], same["words"]) == (16 + 24, TINY.rows)
    assert 0 < same["largest_difference"] <= 1e-4 * same["largest_score"]
    assert 0.999 < rounded["least_cosine"] < same["least_cosine"]


def test_a_changed_number_is_seen(work, tmp_path):
    written = random_llava.write(tmp_path / "other", TINY, seed=1)
    faults = full_size.differences(files.join(work, "hf"), written)
    assert faults == [f"{name}: other bytes" for name in sorted(written)]
    name, tensor = next(iter(written.items()))
    wrong = {name: tensor._replace(shape=[1]), "lost": tensor}
    found = full_size.differences(str(tmp_path / "other"), wrong)
    assert f"{name}: expected bfloat16 [1], found (torch.bfloat16, {tensor.shape})" in found
    assert found[-1] == "lost: missing"
    assert sum("was not written" in fault for fault in found) == len(written) - 1


def test_scores_that_differ_at_one_position_are_no_proof():
    theirs, ours = np.eye(4), np.eye(4)
    ours[2, 0] = 0.1
    found = full_size.compared(ours, theirs)
    assert found["least_cosine"] == pytest.approx(1 / np.hypot(1, 0.1))
    assert found["largest_difference"] == 0.1
    exact = full_size.compared(theirs, theirs)
    assert full_size.judged_scores(exact, exact) == []
    assert len(full_size.judged_scores(found, found)) == 3
    unknown = full_size.compared(np.full((4, 4), np.nan), theirs)
    assert len(full_size.judged_scores(unknown, unknown)) == 3
    with pytest.raises(ValueError, match=r"expected \[4, 4\], found \[3, 4\]"):
        full_size.compared(theirs[:3], theirs)


@pytest.mark.parametrize("size", [FULL, TINY])
def test_names_and_shapes_are_those_of_transformers(size, tmp_path):
    import torch

    files.write_json(tmp_path / "config.json", random_llava.config(size))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    expected = sorted(tuple(value.shape) for value in model.parameters())
    shapes = random_llava.tensors(size)
    assert sorted(shapes.values()) == expected
    if size is FULL:  # as counted in the files on the hub
        assert (len(shapes), sum(map(np.prod, expected))) == (686, 7_063_427_072)
