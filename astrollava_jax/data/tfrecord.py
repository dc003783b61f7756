"""Writes a record set: TFRecord shards with an index beside each, and what TFDS wants to know.

A set is a folder, one split of one data set:

    NAME-SPLIT.tfrecord-00000-of-00002        frames, one serialised Example each
    NAME-SPLIT.tfrecord-00000-of-00002.idx    pairs of int64: byte of the frame, payload bytes
    dataset_info.json  features.json          what `tfds.builder_from_directory` reads
    checksums.json                            size and SHA-256 of every other file

A frame is: payload length (uint64), its masked CRC32C (uint32), payload, its masked CRC32C
(uint32). All integers are little-endian.
"""

import dataclasses
import hashlib
import itertools
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int

from astrollava_jax import files
from astrollava_jax.data import example as example_module
from astrollava_jax.data.example import TEXT_FEATURES, Example

SCHEMA_VERSION = "1.0.0"
"""Of the features of a record; a reader that knows 1.x reads every 1.y."""

RECORDS_PER_SHARD = 1024
"""About 100 MB of pictures at training size: long reads from a bucket, and still many shards to
share among hosts."""

HEADER_BYTES = 12
FOOTER_BYTES = 4
INDEX_SUFFIX = ".idx"
CHECKSUMS = "checksums.json"

_INDEX_DTYPE = np.dtype("<i8")
_CRC_MASK = 0xA282EAD8  # TFRecord's own, so that a CRC of data that holds CRCs is not degenerate


@dataclasses.dataclass(frozen=True)
class SetInfo:
    """What was written."""

    folder: str
    name: str
    split: str
    num_examples: int
    num_bytes: int
    """Of the serialised examples, as TFDS counts: without framing."""
    shards: tuple[str, ...]
    """File names, in order."""


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard that was written under a name of its own: how many there will be is not yet known."""

    path: str
    num_examples: int
    num_bytes: int


def write_set(
    folder: files.Where,
    examples: Iterable[Example],
    *,
    name: str,
    split: str,
    description: str = "",
    records_per_shard: int = RECORDS_PER_SHARD,
) -> SetInfo:
    """Writes the examples as one set; the folder appears when it is complete, or not at all.

    Examples are taken one at a time, and none is kept.

    Raises:
        ValueError: if there are no examples, one cannot be encoded, or a name is no identifier.
        FileExistsError: if something stands at `folder` already.
    """
    _check_names(name=name, split=split)
    if records_per_shard < 1:
        raise ValueError(f"expected records_per_shard to be at least 1, found {records_per_shard}")
    with files.publish_folder(folder) as inside:
        written = [
            _write_shard(files.join(inside, f"shard-{number}"), chunk)
            for number, chunk in enumerate(_chunks(examples, records_per_shard))
        ]
        if not written:
            raise ValueError(
                f"{folder}: no examples to write, and an empty set cannot be trained on"
            )
        shards = tuple(
            _name_shard(inside, shard, shard_name(name, split, number, len(written)))
            for number, shard in enumerate(written)
        )
        files.write_json(
            files.join(inside, "dataset_info.json"),
            _dataset_info(name, split, description, written),
        )
        files.write_json(files.join(inside, "features.json"), tfds_features())
        files.write_json(files.join(inside, CHECKSUMS), _checksums(inside))
    return SetInfo(
        folder=str(folder),
        name=name,
        split=split,
        num_examples=sum(shard.num_examples for shard in written),
        num_bytes=sum(shard.num_bytes for shard in written),
        shards=shards,
    )


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """The file name of a shard, as TFDS builds it."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def masked_crc32c(content: bytes) -> int:
    """The checksum of TFRecord: a rotated CRC32C plus a constant.

    Source: tensorflow/core/lib/hash/crc32c.h.
    """
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The payload as it stands in a TFRecord file."""
    header = struct.pack("<Q", len(payload))
    return b"".join(
        [
            header,
            struct.pack("<I", masked_crc32c(header)),
            payload,
            struct.pack("<I", masked_crc32c(payload)),
        ]
    )


def payload_length(header: bytes) -> int:
    """How many bytes of payload a frame's first twelve bytes announce.

    Raises:
        ValueError: if they are too few or do not match their checksum.
    """
    if len(header) < HEADER_BYTES:
        raise ValueError(f"the file ends inside a header ({len(header)} of {HEADER_BYTES} bytes)")
    length, crc = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != crc:
        raise ValueError("the length does not match its checksum")
    return length


def unframe(content: bytes) -> bytes:
    """The payload of one whole frame, both of its checksums verified.

    Raises:
        ValueError: if a checksum or the length is not right.
    """
    length = payload_length(content[:HEADER_BYTES])
    if len(content) != HEADER_BYTES + length + FOOTER_BYTES:
        found = len(content) - HEADER_BYTES - FOOTER_BYTES
        raise ValueError(f"the header announces {length} bytes, found {found}")
    payload = content[HEADER_BYTES:-FOOTER_BYTES]
    if masked_crc32c(payload) != struct.unpack("<I", content[-FOOTER_BYTES:])[0]:
        raise ValueError("the data does not match its checksum")
    return payload


def read_index(path: files.Where) -> Int[np.ndarray, "records 2"]:
    """The (byte of the frame, payload bytes) pairs of a sidecar.

    Raises:
        ValueError: if the file does not hold whole pairs.
    """
    content = files.read_bytes(path)
    if len(content) % (2 * _INDEX_DTYPE.itemsize):
        raise ValueError(f"{path}: expected pairs of 8-byte integers, found {len(content)} bytes")
    return np.frombuffer(content, _INDEX_DTYPE).reshape(-1, 2).astype(np.int64)


def tfds_features() -> dict[str, Any]:
    """The content of `features.json`: the features of a record in TFDS's words."""
    text = {"pythonClassName": _tfds_class("text_feature.Text"), "text": {}}
    image = {
        "pythonClassName": _tfds_class("image_feature.Image"),
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
    }
    features = {feature: text for feature in TEXT_FEATURES}
    features["image"] = _tfds_sequence(image)
    features["turns"] = _tfds_sequence(_tfds_dict({"role": text, "text": text}))
    return _tfds_dict(features)


def _tfds_class(name: str) -> str:
    return f"tensorflow_datasets.core.features.{name}"


def _tfds_dict(features: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": _tfds_class("features_dict.FeaturesDict"),
        "featuresDict": {"features": features},
    }


def _tfds_sequence(feature: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": _tfds_class("sequence_feature.Sequence"),
        "sequence": {"feature": feature, "length": "-1"},
    }


def _check_names(**names: str) -> None:
    for what, value in names.items():
        if not re.fullmatch(r"[a-zA-Z]\w*", value):
            raise ValueError(
                f"expected {what} to be letters, digits and underscores, as TFDS wants it, "
                f"found {value!r}"
            )


def _chunks(examples: Iterable[Example], size: int) -> Iterator[Iterator[Example]]:
    """The examples in runs of `size`, each run taken before the next is asked for."""
    rest = iter(examples)
    for first in rest:
        yield itertools.chain([first], itertools.islice(rest, size - 1))


def _write_shard(path: str, examples: Iterable[Example]) -> _Shard:
    index: list[tuple[int, int]] = []
    position = 0
    with files.publish(path) as handle:
        for example in examples:
            payload = example_module.encode(example)
            index.append((position, len(payload)))
            position += handle.write(frame(payload))
    files.write_bytes(path + INDEX_SUFFIX, np.array(index, _INDEX_DTYPE).tobytes())
    return _Shard(path, len(index), sum(length for _, length in index))


def _name_shard(folder: str, shard: _Shard, name: str) -> str:
    for suffix in ("", INDEX_SUFFIX):
        files.move(shard.path + suffix, files.join(folder, name + suffix))
    return name


def _dataset_info(name: str, split: str, description: str, shards: list[_Shard]) -> dict[str, Any]:
    """The content of `dataset_info.json`, in the JSON form of TFDS's DatasetInfo message."""
    return {
        "name": name,
        "version": SCHEMA_VERSION,
        "description": description,
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(shard.num_examples) for shard in shards],
                "numBytes": str(sum(shard.num_bytes for shard in shards)),
            }
        ],
    }


def _checksums(folder: str) -> dict[str, dict[str, Any]]:
    return {name: checksum(files.join(folder, name)) for name in files.names(folder)}


def checksum(path: str) -> dict[str, Any]:
    """Size and SHA-256 of a file, as `checksums.json` states them."""
    digest = hashlib.sha256()
    with files.open_read(path) as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return {"bytes": files.size_bytes(path), "sha256": digest.hexdigest()}
