"""Saved models: the same to the byte through every layout, but for what was trained."""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_directories as tiny
import torch
from orbax.checkpoint import v1 as ocp

from astrollava_jax.weights import orbax
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.save import save
from astrollava_jax.weights.source import Overlay


def contents(folder):
    paths = (path for path in folder.iterdir() if path.name != "checksums.json")
    return {path.name: path.read_bytes() for path in paths}


def beside_weights(folder):
    return {n: data for n, data in contents(folder).items() if not n.startswith("model")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_hf_to_ours_to_hf_is_the_same_to_the_byte(model, tmp_path, dtype):
    written = tiny.write_hf(tmp_path / "hf", model, dtype=dtype)
    save(tmp_path / "ours", "orbax", open_model(tmp_path / "hf"))
    save(tmp_path / "again", "hf", open_model(tmp_path / "ours"))
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    assert beside_weights(tmp_path / "again") == beside_weights(tmp_path / "hf")


@pytest.mark.parametrize("binary", [True, False])
def test_original_to_ours_to_original_is_the_same_to_the_byte(model, tmp_path, binary):
    written = tiny.write_original(tmp_path / "llava", model, binary=binary)
    save(tmp_path / "ours", "orbax", open_model(tmp_path / "llava"))
    save(tmp_path / "again", "llava", open_model(tmp_path / "ours"))
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    kept = {n: d for n, d in beside_weights(tmp_path / "llava").items() if "pytorch" not in n}
    assert beside_weights(tmp_path / "again") == kept


def test_original_to_ours_to_hf_to_ours_to_original(original, tmp_path):
    folder, written = original
    save(tmp_path / "ours", "orbax", open_model(folder))
    save(tmp_path / "hf", "hf", open_model(tmp_path / "ours"))
    save(tmp_path / "ours2", "orbax", open_model(tmp_path / "hf"))
    save(tmp_path / "again", "llava", open_model(tmp_path / "ours2"))
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)


def test_hf_to_original_drops_the_rows_that_were_added(hf, tmp_path):
    folder, written = hf
    save(tmp_path / "llava", "llava", open_model(folder))
    found = tiny.read_all(tmp_path / "llava")
    kept = written["language_model.lm_head.weight"][: tiny.WORDS]
    assert torch.equal(found["lm_head.weight"], kept)
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["vocab_size"] == tiny.WORDS
    assert config["mm_use_im_patch_token"] is False
    tokenizer = json.loads((tmp_path / "llava" / "tokenizer.json").read_text())
    assert [t["content"] for t in tokenizer["added_tokens"]] == ["<unk>", "<s>", "</s>"]
    assert b"<image>" not in (tmp_path / "llava" / "tokenizer_config.json").read_bytes()


def test_trained_parameters_take_the_dtype_of_the_base(hf, model, tmp_path):
    folder, written = hf
    source = open_model(folder)
    kernel = jax.random.normal(jax.random.key(0), (32, 48))
    save(
        tmp_path / "trained", "hf", source, {"projector/layers_0/kernel": kernel},
        template="vicuna_v1", image_mode="pad",
    )  # fmt: skip
    name = "multi_modal_projector.linear_1.weight"
    expected = torch.tensor(np.asarray(kernel)).half().T
    tiny.assert_same(tiny.read_all(tmp_path / "trained"), written | {name: expected})
    again = open_model(tmp_path / "trained")
    assert (again.template, again.image_mode) == ("vicuna_v1", "pad")
    assert again.fingerprint("llm/norm/scale") == source.fingerprint("llm/norm/scale")
    save(tmp_path / "both", "orbax", Overlay(source, {}, tmp_path, template="llava_v1"))
    assert open_model(tmp_path / "both").template == "llava_v1"


def test_what_was_trained_must_fit(hf):
    source = open_model(hf[0])
    with pytest.raises(ValueError, match="run: the model has no parameters llm/a, llm/b"):
        Overlay(source, {"llm/b": np.zeros(1), "llm/a": np.zeros(1)}, "run")
    with pytest.raises(ValueError, match=r"llm/norm/scale: expected \[48\], found \[3\]"):
        Overlay(source, {"llm/norm/scale": np.zeros(3)}, "run").read("llm/norm/scale")
    overlay = Overlay(source, {"llm/norm/scale": np.zeros(48, np.float32)}, "run")
    assert overlay.folder_of("llm/norm/scale") == "run"
    assert overlay.folder_of("llm/embed/embedding") == str(hf[0])
    assert overlay.fingerprint("llm/norm/scale") != source.fingerprint("llm/norm/scale")
    assert overlay.layout is None


def test_a_number_too_large_for_the_dtype_is_an_error(hf, tmp_path):
    source = open_model(hf[0])
    trained = {"llm/norm/scale": np.full(48, 1e5, np.float32)}
    with pytest.raises(ValueError, match="48 of 48 numbers are too large for float16"):
        save(tmp_path / "out", "hf", source, trained)
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "out", "hf", source, trained, dtype=ml_dtypes.bfloat16)
    again = open_model(tmp_path / "out")
    assert {str(info.dtype) for info in again.shapes.values()} == {"bfloat16"}
    assert json.loads(again.sidecars["config.json"])["torch_dtype"] == "bfloat16"


def test_nothing_is_overwritten(hf, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another name"):
        save(tmp_path / "kept", "hf", open_model(hf[0]))
    assert contents(tmp_path / "kept") == {"file": b"mine"}
    with pytest.raises(ValueError, match=r"expected one of hf, llava, orbax, .* found 'gguf'"):
        save(tmp_path / "new", "gguf", open_model(hf[0]))


def chunks(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]


@pytest.mark.parametrize("chunk_bytes", [orbax._CHUNK_BYTES, 48 * 80])
def test_our_own_layout_is_read_in_parts(hf, tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(orbax, "_CHUNK_BYTES", chunk_bytes)
    source = open_model(hf[0])
    save(tmp_path / "ours", "orbax", source)
    ours = open_model(tmp_path / "ours")
    address = "llm/layers/mlp/up_proj/kernel"  # 2 layers of 48 x 80 x 2 bytes
    files = len(chunks(tmp_path / "ours" / "params" / "state" / address))
    assert files == (1 if chunk_bytes > 2 * 48 * 80 * 2 else 4)
    part = (slice(1, 2), slice(3, 30), slice(0, 7))
    np.testing.assert_array_equal(ours.read(address, part), source.read(address)[1:2, 3:30, :7])
    digest = hashlib.sha256(source.read(address).tobytes()).hexdigest()
    assert ours.fingerprint(address) == digest[:32]


def test_a_lost_chunk_is_not_read_as_zeros(hf, tmp_path):
    save(tmp_path / "ours", "orbax", open_model(hf[0]))
    ours = open_model(tmp_path / "ours")
    (chunk,) = chunks(tmp_path / "ours" / "params" / "state" / "llm" / "norm" / "scale")
    chunk.unlink()
    with pytest.raises(ValueError, match="llm/norm/scale"):
        ours.read("llm/norm/scale")


def test_arrays_in_one_store_are_read_too(hf, tmp_path, monkeypatch):
    source = open_model(hf[0])
    monkeypatch.setattr(orbax, "_in_small_chunks", ocp.Context)  # as Orbax writes by itself
    save(tmp_path / "ours", "orbax", source)
    assert (tmp_path / "ours" / "params" / "state" / "manifest.ocdbt").exists()
    ours = open_model(tmp_path / "ours")
    for address in source.shapes:
        np.testing.assert_array_equal(ours.read(address), source.read(address))
