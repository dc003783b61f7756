"""Reads and writes safetensors files, a slice at a time.

A file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes:
`{"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}`.
"""

import collections
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.weights.layout import Index, Shape

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

SHARD_BYTES = 5_000_000_000
"""A file is not made larger than this, as on the hub."""

_BLOCK_BYTES = 1 << 26
_HEADER_LIMIT = 100_000_000


class Info(NamedTuple):
    """What a tensor is, before it is read."""

    shape: Shape
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """One file. Only the header is read when it is opened."""

    def __init__(self, path: str):
        self.path = path
        self._reader = files.RangeReader(path)
        header, self._start = _header(path, self._reader)
        self.infos: dict[str, Info] = {}
        self._offsets: dict[str, int] = {}
        end, spans = 0, []
        for name, entry in header.items():
            self.infos[name], (first, last) = _entry(path, name, entry)
            self._offsets[name] = self._start + first
            spans.append((first, last, name))
        for first, last, name in sorted(spans):
            if first != end:
                raise ValueError(
                    f"{path}: tensor {name}: expected its bytes to begin at {end}, behind those of "
                    f"the tensor before it, its header says {first}: fetch it again"
                )
            end = last
        size = files.size_bytes(path)
        if size != self._start + end:
            raise ValueError(
                f"{path}: its header speaks of {self._start + end} bytes, the file has {size}; it "
                "is damaged or was not copied whole: fetch it again"
            )

    def read(self, name: str, index: Index) -> Shaped[np.ndarray, "..."]:
        """A part of a tensor; of the bytes outside its rows none is read."""
        info = self.infos[name]
        if not info.shape:
            return self._rows(name, 0, 1).reshape(())
        rows = index[0]
        rest = tuple(item.stop - item.start for item in index[1:])
        if rest == info.shape[1:]:
            return self._rows(name, rows.start, rows.stop)
        result = np.empty((rows.stop - rows.start, *rest), info.dtype)
        step = max(1, _BLOCK_BYTES // (math.prod(info.shape[1:]) * info.dtype.itemsize))
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            block = self._rows(name, start, stop)
            result[start - rows.start : stop - rows.start] = block[:, *index[1:]]
        return result

    def _rows(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "..."]:
        info = self.infos[name]
        stride = math.prod(info.shape[1:]) * info.dtype.itemsize
        wanted = (stop - start) * stride
        data = self._reader.read(self._offsets[name] + start * stride, wanted)
        if len(data) != wanted:
            raise ValueError(
                f"{self.path}: tensor {name}: expected {wanted} bytes, found {len(data)}: the file "
                "was cut while it was read; fetch it again"
            )
        return np.frombuffer(data, info.dtype).reshape(stop - start, *info.shape[1:])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of a header; json's own keeps the last of two entries of one name.

    Raises:
        ValueError: if a name comes twice.
    """
    counts = collections.Counter(name for name, _ in pairs)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"two entries of {', '.join(twice)}")
    return dict(pairs)


def _header(path: str, reader: files.RangeReader) -> tuple[dict[str, Any], int]:
    """The entries of a file's header, and where the tensors begin."""
    first, size = reader.read(0, 8), files.size_bytes(path)
    if first == b"version ":
        raise ValueError(
            f"{path}: expected a safetensors file, found the note that git leaves in its place: "
            "fetch it with `git lfs pull`"
        )
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= min(_HEADER_LIMIT, size - 8):
        raise ValueError(
            f"{path}: expected a safetensors file, found {size} bytes whose first 8 give a header "
            f"of {length} bytes; it is damaged or was not copied whole: fetch it again"
        )
    try:
        header = json.loads(reader.read(8, length), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"{path}: its header is not sound ({error}): fetch it again") from None
    if not isinstance(header, dict):
        found = type(header).__name__
        raise ValueError(f"{path}: expected a mapping as its header, found {found}: fetch it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _entry(path: str, name: str, entry: Any) -> tuple[Info, tuple[int, int]]:
    try:
        dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        first, last = map(int, entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: tensor {name}: expected dtype ({', '.join(DTYPES)}), shape and data_offsets, "
            f"found {entry}"
        ) from None
    info = Info(shape, dtype)
    if last - first != info.nbytes:
        raise ValueError(
            f"{path}: tensor {name}: {list(shape)} of {dtype} takes {info.nbytes} bytes, its "
            f"data_offsets give {last - first}"
        )
    return info, (first, last)


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to write; `read` makes its numbers when their turn comes."""

    name: str
    info: Info
    read: Callable[[], Shaped[np.ndarray, "..."]]


def write(
    folder: files.Where, tensors: Sequence[Outgoing], *, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Writes tensors one after the other; several files get an index beside them.

    Returns:
        The names of the files with tensors.
    """
    shards = _shards(tensors, shard_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    for name, shard in zip(names, shards):
        write_file(files.join(folder, name), shard)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(tensor.info.nbytes for tensor in tensors)},
            "weight_map": {t.name: name for name, shard in zip(names, shards) for t in shard},
        }
        files.write_json(files.join(folder, "model.safetensors.index.json"), index)
    return names


def _shards(tensors: Sequence[Outgoing], shard_bytes: int) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.info.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.info.nbytes
    return shards


def write_file(path: str, tensors: Sequence[Outgoing]) -> None:
    """Writes one file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        info = tensor.info
        header[tensor.name] = {
            "dtype": NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [place, place + info.nbytes],
        }
        place += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.publish(path) as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            array = tensor.read()
            assert (array.shape, array.dtype) == tensor.info, (
                tensor.name,
                array.shape,
                array.dtype,
            )
            handle.write(array.tobytes())
            del array  # it may be a view of more, which must not stay while the next is read
