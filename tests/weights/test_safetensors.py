"""safetensors and .bin files, against the libraries that define them."""

import json
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from astrollava_jax import files
from astrollava_jax.weights.safetensors import Info, Outgoing, SafetensorsFile, write
from astrollava_jax.weights.tensors import open_tensors
from astrollava_jax.weights.torch_file import TorchFile

TENSORS = {
    "half": torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)).half(),
    "brain": torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "full": torch.arange(12.0).reshape(4, 3),
    "ids": torch.arange(5)[None],
    "scale": torch.tensor(2.5),
}
DTYPES = {
    "half": np.float16,
    "brain": ml_dtypes.bfloat16,
    "full": np.float32,
    "ids": np.int64,
    "scale": np.float32,
}


def everything(shape):
    return tuple(slice(0, size) for size in shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def outgoing(name: str, array: np.ndarray) -> Outgoing:
    return Outgoing(name, Info(array.shape, array.dtype), lambda: array)


@pytest.fixture(params=["safetensors", "bin", "old bin"])
def opened(request, tmp_path):
    """The same tensors in each kind of file."""
    path = tmp_path / "tensors"
    if request.param == "safetensors":
        safetensors.torch.save_file(TENSORS, path)
        return SafetensorsFile(str(path))
    torch.save(TENSORS, path, _use_new_zipfile_serialization=request.param == "bin")
    return TorchFile(str(path))


def test_every_dtype_is_read_to_the_bit(opened):
    assert set(opened.infos) == set(TENSORS)
    for name, tensor in TENSORS.items():
        info = opened.infos[name]
        assert info == (tuple(tensor.shape), np.dtype(DTYPES[name]))
        array = opened.read(name, everything(info.shape))
        assert (array.shape, array.dtype) == info
        assert array.tobytes() == bits(tensor)


@pytest.mark.parametrize(
    "cut",
    [
        np.s_[2:5, 0:4, 0:3],
        np.s_[0:6, 1:3, 0:3],
        np.s_[1:2, 3:4, 2:3],
    ],
)
def test_a_slice_is_read(opened, cut):
    expected = TENSORS["half"][cut]
    assert opened.read("half", cut).tobytes() == bits(expected)


def test_only_the_rows_that_are_asked_for_are_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1000, 8), "b": torch.zeros(500)}, path)
    opened = SafetensorsFile(str(path))
    lengths = []
    read = files.RangeReader.read

    def counted(self, offset: int, length: int) -> bytes:
        lengths.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(files.RangeReader, "read", counted)
    opened.read("a", np.s_[10:13, 0:8])
    opened.read("a", np.s_[10:13, 2:4])
    assert lengths == [96, 96]


def test_what_is_written_their_library_reads(tmp_path):
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.array([1.5, -3.0], ml_dtypes.bfloat16),
        "full": np.linspace(0, 1, 5, dtype=np.float32),
    }
    assert write(tmp_path, [outgoing(n, a) for n, a in arrays.items()]) == ["model.safetensors"]
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {n: bits(t) for n, t in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert {n: str(t.dtype)[6:] for n, t in found.items()} == {
        n: str(a.dtype) for n, a in arrays.items()
    }
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_large_model_is_written_in_shards_with_an_index(tmp_path):
    arrays = {f"t{i}": np.full((10, 10), i, np.float32) for i in range(5)}
    names = write(tmp_path, [outgoing(n, a) for n, a in arrays.items()], shard_bytes=900)
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"]["t2"] == names[1]
    opened = open_tensors(tmp_path)
    assert {n: opened.read(n, np.s_[0:1, 0:1]).item() for n in arrays} == {
        f"t{i}": i for i in range(5)
    }
    assert b"".join(opened.blocks("t3", slice(2, 9))) == arrays["t3"][2:9].tobytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:4], "give a header of 0 bytes"),
        (lambda data: data[:40], "was not copied whole"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "was not copied whole"),
        (lambda data: data[:8] + b"x" + data[9:], "header is not sound"),
        (lambda data: data[:-1], "its header speaks of"),
        (lambda data: data.replace(b'"F16"', b'"F99"'), "tensor half: expected dtype"),
        (lambda data: data.replace(b"[6,4,3]", b"[6,4,9]"), "takes 432 bytes"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        open_tensors(tmp_path)
    assert str(path) in str(error.value)


def test_an_index_that_names_missing_files_lists_them(tmp_path):
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "gone.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 .* gone.safetensors, model-2.safetensors"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["../out/model.safetensors", "/etc/passwd", "..", "a\\b"])
def test_an_index_reads_nothing_outside_its_directory(name, tmp_path):
    (tmp_path / "out").mkdir()
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "out" / "model.safetensors")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="files that are not in its own directory") as error:
        open_tensors(tmp_path / "in")
    assert str(index) in str(error.value) and name in str(error.value)


def test_an_index_must_fit_its_files(tmp_path):
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    safetensors.torch.save_file({"c": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"b: not in one.safetensors"):
        open_tensors(tmp_path)
    safetensors.torch.save_file({n: torch.zeros(1) for n in "ab"}, tmp_path / "one.safetensors")
    safetensors.torch.save_file({n: torch.zeros(1) for n in "ac"}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"the same tensor in two files\n  a: also in"):
        open_tensors(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin.*found notes.txt"):
        open_tensors(tmp_path)


class Malicious:
    def __reduce__(self):
        return print, ("code of a stranger was run",)


def test_a_pickle_may_hold_nothing_but_tensors(tmp_path, capsys):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Malicious()}, path)
    with pytest.raises(ValueError, match="torch cannot read it as tensors alone"):
        open_tensors(tmp_path)
    assert capsys.readouterr().out == ""
    torch.save({"a": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(ValueError, match="expected tensors only, found others: epoch"):
        open_tensors(tmp_path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="expected tensors by name, found list"):
        open_tensors(tmp_path)
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="torch cannot read it"):
        open_tensors(tmp_path)


def test_a_bin_file_without_torch_says_what_to_do(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch"):
        open_tensors(tmp_path)
