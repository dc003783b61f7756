"""Reads a record set at random places, every record checked against its CRC32C."""

import itertools
import logging
import operator
import re
import time
from bisect import bisect_right

import numpy as np
from jaxtyping import Int

from astrollava_jax import files
from astrollava_jax.data import tfrecord
from astrollava_jax.data.faults import RecordError, StorageError

_SHARD = r"(?P<set>.+)\.tfrecord-(?P<number>\d{5,})-of-(?P<count>\d{5,})"
_FRAMING_BYTES = tfrecord.HEADER_BYTES + tfrecord.FOOTER_BYTES

Index = Int[np.ndarray, "records 2"]

PAUSES = (0.25, 1.0, 3.0, 9.0, 15.0)
"""Seconds between attempts to read: a network's short fault passes, and all of them are over before
a watchdog, which waits for a minute at least, would end the run with less to say."""


class TFRecordSource:
    """The serialised examples of one set, by number.

    Works on the folders of `tfrecord.write_set` and on TFRecord folders written by TFDS; without a
    sidecar the index is made by walking the shard's headers. Safe in threads, and travels to
    worker processes. A record that does not match its checksum is never returned.

    Args:
        folder: the set.
        split: which split to read where the folder holds several, as TFDS's folders do.

    Raises:
        FileNotFoundError: if there is no folder, no shard in it, or a shard is missing.
        ValueError: if several splits are there to choose from, or a shard and its index do not
            agree.

    Attributes:
        pauses: between attempts to read a record, in seconds.
    """

    def __init__(self, folder: files.Where, split: str | None = None):
        self.folder = str(folder)
        self.pauses: tuple[float, ...] = PAUSES
        self.shards = _find_shards(folder, split)
        paths = [files.join(folder, shard) for shard in self.shards]
        self._readers = [files.RangeReader(path) for path in paths]
        self._indices = [_index(path, reader) for path, reader in zip(paths, self._readers)]
        self._starts = [0, *itertools.accumulate(len(index) for index in self._indices)]
        _check_lengths(self.folder, self.shards, [len(index) for index in self._indices])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> bytes:
        """The serialised example.

        Raises:
            RecordError: if it does not match its checksum.
            FileNotFoundError: if its shard was taken away while the others stayed.
            StorageError: if it cannot be read for another reason, after several attempts.
        """
        shard, record = self._locate(number)
        offset, length = self._indices[shard][record].tolist()
        content = self._read(shard, offset, length + _FRAMING_BYTES)
        try:
            payload = tfrecord.unframe(content)
        except ValueError as error:
            raise RecordError(f"{self.where(number)}: damaged, {error}", "checksum") from None
        return payload

    def where(self, number: int) -> str:
        """Where a record stands, for a person: shard, record in it, byte in it."""
        shard, record = self._locate(number)
        offset = int(self._indices[shard][record, 0])
        path = files.join(self.folder, self.shards[shard])
        return f"{path}, record {record} at byte {offset}"

    def __repr__(self) -> str:
        return f"TFRecordSource({self.folder!r})"

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes that the index promises: where they do not come, it is not the record's fault."""
        path, waited = files.join(self.folder, self.shards[shard]), 0.0
        for pause in (*self.pauses, None):
            try:
                content = self._readers[shard].read(offset, length)
                if len(content) == length:
                    return content
                why = f"it ends {length - len(content)} bytes too early; it was whole at the start"
                kind: type[OSError] = StorageError
            except OSError as error:
                why = str(error.strerror or error)
                kind = FileNotFoundError if self._lacks(error) else StorageError
            self._readers[shard].close()  # the next attempt opens it anew, after a remount too
            if pause is None:
                raise kind(
                    f"{path}: {why} (tried {len(self.pauses) + 1} times in {waited:.0f} s): bring "
                    "the file back, and start the run again to go on"
                )
            logging.getLogger(__name__).warning("%s: %s; again in %g s", path, why, pause)
            time.sleep(pause)
            waited += pause
        raise AssertionError

    def _lacks(self, error: OSError) -> bool:
        """Whether a file is gone and the folder is not: a mount that vanished takes all of them."""
        try:
            return isinstance(error, FileNotFoundError) and bool(files.names(self.folder))
        except OSError:
            return False

    def _locate(self, number: int) -> tuple[int, int]:
        number = operator.index(number)
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder}: record {number} of {len(self)}")
        shard = bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]


def _find_shards(folder: files.Where, split: str | None) -> list[str]:
    """The names of the split's shards, in order, none missing."""
    if not files.is_folder(folder):
        raise FileNotFoundError(f"{folder}: expected the folder of a record set, found none")
    matches = [match for name in files.names(folder) if (match := re.fullmatch(_SHARD, name))]
    if split is not None:
        matches = [match for match in matches if match["set"].endswith(f"-{split}")]
    if not matches:
        raise FileNotFoundError(
            f"{folder}: expected shards (NAME-{split or 'SPLIT'}.tfrecord-00000-of-00001), found "
            "none; name the folder that holds them"
        )
    sets = {(match["set"], match["count"]) for match in matches}
    if len(sets) > 1:
        found = ", ".join(f"{name} in {int(count)} shards" for name, count in sorted(sets))
        raise ValueError(f"{folder}: expected one split of one set, found {found}: choose one")
    ((name, count),) = sets
    expected = [f"{name}.tfrecord-{number:05d}-of-{count}" for number in range(int(count))]
    missing = sorted(set(expected) - {match.group() for match in matches})
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(expected)} shards are missing: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    return expected


def _index(path: str, reader: files.RangeReader) -> Index:
    """The shard's index, from its sidecar or else from its headers."""
    if not files.exists(path + tfrecord.INDEX_SUFFIX):
        return _scan(path, reader)
    index = tfrecord.read_index(path + tfrecord.INDEX_SUFFIX)
    _check_index(path, index)
    return index


def _check_index(path: str, index: Index) -> None:
    """Raises unless the frames lie side by side and end where the shard ends."""
    ends = np.cumsum(index[:, 1] + _FRAMING_BYTES)
    starts = np.concatenate([[0], ends])
    size = files.size_bytes(path)
    if not np.array_equal(starts[:-1], index[:, 0]) or starts[-1] != size:
        raise ValueError(
            f"{path}: its index ends at byte {starts[-1]} and the shard at byte {size}; "
            f"the shard is cut short, or {path}{tfrecord.INDEX_SUFFIX} belongs to another: fetch "
            "both again, or remove the index if the shard is whole"
        )


def _scan(path: str, reader: files.RangeReader) -> Index:
    """An index made by walking from header to header; payloads are not read."""
    size = files.size_bytes(path)
    pairs: list[tuple[int, int]] = []
    offset = 0
    while offset < size:
        where = f"{path}, record {len(pairs)} at byte {offset}"
        try:
            length = tfrecord.payload_length(reader.read(offset, tfrecord.HEADER_BYTES))
        except ValueError as error:
            raise ValueError(f"{where}: damaged, {error}") from None
        pairs.append((offset, length))
        offset += length + _FRAMING_BYTES
        if offset > size:
            raise ValueError(f"{where}: the shard ends {offset - size} bytes too early")
    return np.array(pairs, np.int64).reshape(-1, 2)


def _check_lengths(folder: str, shards: list[str], found: list[int]) -> None:
    """Raises if `dataset_info.json` states other numbers of records for these shards."""
    path = files.join(folder, "dataset_info.json")
    if not files.exists(path):
        return
    for split in files.read_json_object(path).get("splits", []):
        stated = [int(length) for length in split.get("shardLengths", [])]
        if shards[0].endswith(f"-{split.get('name')}.tfrecord-00000-of-{len(shards):05d}"):
            for shard, expected, length in zip(shards, stated, found):
                if expected != length:
                    raise ValueError(
                        f"{files.join(folder, shard)}: expected {expected} records, as "
                        f"dataset_info.json states, found {length}"
                    )
