"""The tensors of a folder by name, in whichever of the known files they lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.safetensors import Info, SafetensorsFile
from astrollava_jax.weights.torch_file import TorchFile

BLOCK_BYTES = 1 << 26


TensorFile = SafetensorsFile | TorchFile
"""One file: `path`, `infos` by name, and `read(name, index)`."""

FORMATS: tuple[tuple[str, Callable[[str], TensorFile]], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", TorchFile),
)
"""File name and reader; several files have the name with `.index.json` beside them."""


class Renamed:
    """A file whose tensors go by other names here."""

    def __init__(self, file: TensorFile, rename: Callable[[str], str]):
        self.path, self._file = file.path, file
        self._names = {rename(name): name for name in file.infos}
        if len(self._names) < len(file.infos):
            lost = sorted(set(file.infos) - set(self._names.values()))
            raise ValueError(f"{file.path}: the same tensor twice\n  " + "\n  ".join(lost))
        self.infos = {name: file.infos[old] for name, old in self._names.items()}

    def read(self, name: str, index: Index) -> Shaped[np.ndarray, "..."]:
        """A part of a tensor."""
        return self._file.read(self._names[name], index)


class Tensors:
    """All tensors of a folder."""

    def __init__(self, folder: str, parts: Sequence[TensorFile | Renamed]):
        self.folder = folder
        self._where = {name: part for part in parts for name in part.infos}
        self.infos: Mapping[str, Info] = {
            name: part.infos[name] for name, part in self._where.items()
        }
        twice = [
            f"{name}: also in {self._where[name].path}"
            for part in parts
            for name in part.infos
            if self._where[name] is not part
        ]
        if twice:
            raise ValueError(f"{folder}: the same tensor in two files\n  " + "\n  ".join(twice))

    def read(self, name: str, index: Index) -> Shaped[np.ndarray, "..."]:
        """A part of a tensor, in the dtype of the file."""
        return self._where[name].read(name, index)

    def file_of(self, name: str) -> str:
        """The file in which a tensor lies."""
        return self._where[name].path

    def blocks(self, name: str, rows: slice) -> Iterator[bytes]:
        """The bytes of some rows of a tensor as they lie in the file, a bounded piece at a time."""
        info = self.infos[name]
        rest = tuple(slice(0, size) for size in info.shape[1:])
        step = max(1, BLOCK_BYTES * info.shape[0] // max(1, info.nbytes))
        for start in range(rows.start, rows.stop, step):
            yield self.read(name, (slice(start, min(start + step, rows.stop)), *rest)).tobytes()


def has_tensors(folder: files.Where) -> bool:
    """Whether a folder has weights in a known format, whole or not."""
    names = [name for name, _ in FORMATS] + [f"{name}.index.json" for name, _ in FORMATS]
    shards = files.names(folder, r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
    return bool(shards) or any(files.exists(files.join(folder, name)) for name in names)


def open_tensors(folder: files.Where) -> Tensors:
    """Opens the weights of a folder; no tensor is read yet.

    Raises:
        FileNotFoundError: if there are none, or if the index names files that are not there.
        ValueError: if a file is damaged, or does not hold what the index says.
    """
    for name, open_file in FORMATS:
        index = files.join(folder, f"{name}.index.json")
        if files.exists(index):
            return _open_indexed(str(folder), index, open_file)
        if files.exists(files.join(folder, name)):
            return Tensors(str(folder), [open_file(files.join(folder, name))])
    looked = ", ".join(f"{name}[.index.json]" for name, _ in FORMATS)
    found = ", ".join(files.names(folder)) or "nothing"
    raise FileNotFoundError(f"{folder}: expected weights in {looked}, found {found}")


def _open_indexed(folder: str, index: str, open_file: Callable[[str], TensorFile]) -> Tensors:
    weight_map = files.read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: expected a weight_map from tensor to file, found none")
    unnamed = [tensor for tensor, name in weight_map.items() if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"{index}: expected the name of a file for {', '.join(unnamed)}")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if name in ("", ".", "..") or set(name) & set("/\\\0")]
    if outside:
        raise ValueError(
            f"{index}: names files that are not in its own directory: {', '.join(outside)}; no "
            "others are read: get it anew, from somebody you trust"
        )
    absent = [name for name in names if not files.exists(files.join(folder, name))]
    if absent:
        raise FileNotFoundError(
            f"{index}: names {len(absent)} of {len(names)} files that are not there: "
            f"{', '.join(absent)}; fetch them again"
        )
    lone = index.removesuffix(".index.json")
    if files.exists(lone) and lone not in [files.join(folder, name) for name in names]:
        raise ValueError(
            f"{folder}: holds weights twice, in {lone} and in the files that {index} names: remove "
            "those that are not to be read"
        )
    parts = {name: open_file(files.join(folder, name)) for name in names}
    lost = [
        f"{tensor}: not in {name}"
        for tensor, name in weight_map.items()
        if tensor not in parts[name].infos
    ]
    if lost:
        raise ValueError(f"{index}: does not fit its files\n  " + "\n  ".join(lost))
    return Tensors(folder, list(parts.values()))
