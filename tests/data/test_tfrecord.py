"""Record sets as they are written: the bytes on disk, and TFDS's view of them."""

import dataclasses
import hashlib
import io
import json
import struct
import warnings

import google_crc32c
import numpy as np
import pytest
from PIL import Image
from small_set import numbered
from tensorboard.summary.writer.record_writer import RecordWriter

from astrollava_jax.data import tfrecord
from astrollava_jax.data.sources import TFRecordSource


def test_a_frame_by_hand():
    # CRC32C("123456789") is 0xE3069283 in every table of checksums.
    assert google_crc32c.value(b"123456789") == 0xE3069283
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c(b"123456789") == (rotated + 0xA282EAD8) % 2**32
    content = tfrecord.frame(b"123456789")
    assert content[:8] == b"\t\0\0\0\0\0\0\0" and content[12:21] == b"123456789"
    assert struct.unpack("<I", content[21:])[0] == tfrecord.masked_crc32c(b"123456789")
    assert tfrecord.unframe(content) == b"123456789"


def test_a_frame_as_tensorboard_writes_it():
    for payload in (b"", b"123456789", bytes(range(256)) * 9):
        written = io.BytesIO()
        RecordWriter(written).write(payload)
        assert tfrecord.frame(payload) == written.getvalue()


def test_a_set_holds_its_shards_and_their_indices(folder):
    names = sorted(path.name for path in folder.iterdir())
    shards = [f"sky-train.tfrecord-0000{number}-of-00003" for number in range(3)]
    assert names == sorted(
        [*shards, *(f"{shard}.idx" for shard in shards)]
        + ["checksums.json", "dataset_info.json", "features.json"]
    )
    index = np.fromfile(folder / f"{shards[0]}.idx", "<i8").reshape(-1, 2)
    assert index.shape == (3, 2) and index[0, 0] == 0
    assert index[1, 0] == index[0, 1] + 16


def test_every_file_has_its_checksum(folder):
    checksums = json.loads((folder / "checksums.json").read_text())
    assert set(checksums) == {path.name for path in folder.iterdir()} - {"checksums.json"}
    for name, stated in checksums.items():
        content = (folder / name).read_bytes()
        assert stated == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_equal_examples_give_equal_sets(folder, tmp_path):
    info = tfrecord.write_set(
        tmp_path / "again", iter(numbered(7)), name="sky", split="train", records_per_shard=3
    )
    assert info.num_examples == 7 and len(info.shards) == 3
    assert info.num_bytes == sum(
        len(record) for record in map(TFRecordSource(folder).__getitem__, range(7))
    )
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_set_appears_whole_or_not_at_all(tmp_path):
    def fails():
        yield from numbered(5)
        raise RuntimeError("the disk of the source is gone")

    with pytest.raises(RuntimeError):
        tfrecord.write_set(tmp_path / "set", fails(), name="sky", split="train")
    with pytest.raises(ValueError, match="no examples to write"):
        tfrecord.write_set(tmp_path / "set", [], name="sky", split="train")
    with pytest.raises(ValueError, match="expected name to be letters"):
        tfrecord.write_set(tmp_path / "set", numbered(1), name="my-sky", split="train")
    with pytest.raises(ValueError, match="records_per_shard"):
        tfrecord.write_set(
            tmp_path / "set", numbered(1), name="sky", split="train", records_per_shard=0
        )
    assert list(tmp_path.iterdir()) == []
    tfrecord.write_set(tmp_path / "set", numbered(1), name="sky", split="train")
    with pytest.raises(FileExistsError):
        tfrecord.write_set(tmp_path / "set", numbered(1), name="sky", split="train")


def test_examples_are_taken_one_at_a_time(tmp_path, monkeypatch):
    events = []
    encode = tfrecord.example_module.encode
    monkeypatch.setattr(
        tfrecord.example_module,
        "encode",
        lambda example: events.append(("written", example.id)) or encode(example),
    )

    def produced():
        for example in numbered(5):
            events.append(("asked", example.id))
            yield example

    tfrecord.write_set(tmp_path / "set", produced(), name="sky", split="train", records_per_shard=2)
    assert events == [(kind, f"sky-{n}") for n in range(5) for kind in ("asked", "written")]


# TFDS


@pytest.fixture(scope="module")
def tfds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow_datasets")


def test_features_json_is_what_tfds_would_write(tfds, tmp_path):
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Sequence(tfds.features.Image()),
            "turns": tfds.features.Sequence({"role": text, "text": text}),
            **{name: text for name in ("id", "caption", "source", "credit", "license", "url")},
        }
    )
    features.save_config(str(tmp_path))
    assert tfrecord.tfds_features() == json.loads((tmp_path / "features.json").read_text())


def test_tfds_opens_a_set(tfds, tmp_path):
    """Without TensorFlow, which is not among the needs of the tests."""
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    examples = [
        dataclasses.replace(example, images=(_png(pixels),) * len(example.images))
        for example in numbered(7)
    ]
    tfrecord.write_set(tmp_path / "set", examples, name="sky", split="train", records_per_shard=3)
    info = tfds.builder_from_directory(str(tmp_path / "set")).info
    source = TFRecordSource(tmp_path / "set")
    split = info.splits["train"]
    assert (info.name, str(info.version), list(info.splits)) == ("sky", "1.0.0", ["train"])
    assert split.num_examples == 7 and split.shard_lengths == [3, 3, 1]
    assert split.num_bytes == sum(len(source[number]) for number in range(7))
    assert [path.name for path in split.filepaths] == source.shards
    for number, example in enumerate(examples):
        read = info.features.deserialize_example_np(source[number])
        assert read["id"].decode() == example.id and read["caption"].decode() == example.caption
        assert [text.decode() for text in read["turns"]["text"]] == [t.text for t in example.turns]
        assert len(read["image"]) == len(example.images)
        assert all(np.array_equal(image, pixels) for image in read["image"])


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_a_set_written_by_tfds_is_read(tfds, tmp_path):
    """Same names and framing as TFDS's own, but no sidecar and two splits in a folder."""
    for split, count in (("train", 3), ("test", 2)):
        path = tmp_path / f"mnist-{split}.tfrecord-00000-of-00001"
        path.write_bytes(b"".join(tfrecord.frame(f"{split}{n}".encode()) for n in range(count)))
    info = {
        "name": "mnist",
        "splits": [
            {"name": "train", "shardLengths": ["3"]},
            {"name": "test", "shardLengths": ["2"]},
        ],
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    source = TFRecordSource(tmp_path, split="test")
    assert [source[number] for number in range(len(source))] == [b"test0", b"test1"]
