"""Our own layout: parameters by address in one Orbax checkpoint, and the facts beside them.

astrollava.json   the format's version, the config, and what the model was made from
sidecars/         config, tokenizer, processor and chat template files, byte for byte
params/           Orbax: one array per address, in the dtype it was stored as
"""

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

from astrollava_jax import files
from astrollava_jax.config import parse, plain
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.weights import llava
from astrollava_jax.weights.layout import Index, whole
from astrollava_jax.weights.source import Source

FACTS, SIDECARS = "astrollava.json", "sidecars"
FORMAT = 1
_GROUP_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 25
_CACHE_BYTES = 1 << 27
"""A chunk with several small layers is read once for all of them."""
_FIELDS = ("layout", "words", "image_mode", "template")


class OrbaxSource(Source):
    """A model in our own layout. A part of a parameter is read without the rest."""

    def __init__(self, folder: files.Where):
        self._folder = str(folder)
        facts = _facts(folder)
        beside = files.join(folder, SIDECARS)
        sidecars = {
            name: files.read_bytes(files.join(beside, name)) for name in files.names(beside)
        }
        tokenized = "tokenizer.json" in sidecars or "tokenizer.model" in sidecars
        super().__init__(
            config=stored_config(folder),
            sidecars=sidecars,
            tokenizer_folder=beside if tokenized else None,
            **{name: facts[name] for name in _FIELDS},
        )
        self._path = files.absolute(files.join(folder, "params"))
        self._infos = _infos(self._path)
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._check()

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or a part of it.

        It goes around Orbax, which reads an array whole and holds its files beside it.
        """
        return self._stored(address)[whole(index, self._infos[address].shape)].read().result()

    def dtype(self, address: str) -> np.dtype:
        """What a parameter is stored as."""
        return np.dtype(self._infos[address].dtype)

    def fingerprint(self, address: str) -> str:
        """A digest of the numbers of a parameter."""
        digest, info = hashlib.sha256(), self.shapes[address]
        row = math.prod(info.shape[1:]) * info.dtype.itemsize
        step = max(1, _GROUP_BYTES // row)
        for start in range(0, info.shape[0], step):
            digest.update(self.read(address, (slice(start, start + step),)).tobytes())
        return digest.hexdigest()[:32]

    def folder_of(self, address: str) -> str:
        """This directory."""
        return self._folder

    def _stored(self, address: str) -> Any:
        """A parameter as tensorstore knows it; nothing is read yet."""
        state = files.join(self._path, "state", "")
        where = {"driver": "file", "path": f"{state}{address}/"}
        if files.exists(files.join(state, "manifest.ocdbt")):  # many arrays in one store
            base = {"driver": "file", "path": state}
            where = {"driver": "ocdbt", "base": base, "path": f"{address}/"}
        spec = {
            "driver": "zarr3",
            "kvstore": where,
            "recheck_cached_data": "open",
            "fill_missing_data_reads": False,  # a lost chunk is an error, no zeros
        }
        return tensorstore.open(spec, read=True, context=self._context).result()

    def _check(self) -> None:
        shapes = llava.shapes(self.config)
        faults = [f"{a}: missing" for a in shapes if a not in self._infos]
        faults += [f"{a}: not in the model" for a in self._infos if a not in shapes]
        faults += [
            f"{a}: expected {list(shape)}, found {list(self._infos[a].shape)}"
            for a, shape in shapes.items()
            if a in self._infos and tuple(self._infos[a].shape) != shape
        ]
        if faults:
            raise ValueError(
                f"{self._folder}: its parameters do not fit its config\n  " + "\n  ".join(faults)
            )


def stored_config(folder: files.Where) -> LlavaConfig:
    """The shape of a model in our own layout."""
    return parse(LlavaConfig, _facts(folder)["config"], files.join(folder, FACTS))


def _facts(folder: files.Where) -> dict[str, Any]:
    facts = files.read_json_object(files.join(folder, FACTS))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: expected format {FORMAT} in {FACTS}, found {facts.get('format')!r}: it "
            "was written by another version of astrollava"
        )
    return facts


def write(folder: files.Where, source: Source) -> None:
    """Writes a source in our layout into an empty folder, one parameter at a time."""
    facts = {name: getattr(source, name) for name in _FIELDS}
    files.write_json(
        files.join(folder, FACTS), {"format": FORMAT, "config": plain(source.config)} | facts
    )
    beside = files.make_folder(files.join(folder, SIDECARS))
    for name, content in source.sidecars.items():
        files.write_bytes(files.join(beside, name), content)
    path = files.absolute(files.join(folder, "params"))
    with _in_small_chunks(), _in_silence():
        for group in _groups(source):
            ocp.partial.save(path, {address: source.read(address) for address in group})
        ocp.partial.finalize(path)


def _in_small_chunks() -> ocp.Context:
    """Orbax works chunk by chunk: of an array that is one chunk it holds several copies.

    A chunk is a file and leaves the memory when it is written. Orbax's own way of putting many into
    one file (OCDBT) kept most of a large array, compressed, beside the array.
    """
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.array.saving.scoped_storage_options_creator = _layer_by_layer
    context.array.saving.use_ocdbt = False
    context.memory.deepcopy_host_arrays = False
    return context


def _layer_by_layer(key: Any, value: np.ndarray) -> Any:
    """Cuts a large stack between its layers, as it will be read."""
    if value.ndim < 3 or value.nbytes <= _CHUNK_BYTES:
        return None
    storage = ocp.options.ArrayOptions.Saving.StorageOptions
    return storage(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,))


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Keeps Orbax's warnings back, of which two are false at each parameter.

    They are that there is no OCDBT to merge, and that no arrays are found: it looks for them in the
    topmost folder only, and addresses are folders in folders.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _groups(source: Source) -> list[list[str]]:
    """The parameters in groups small enough to be held at once; a large one is alone."""
    groups: list[list[str]] = [[]]
    filled = 0
    for address, info in source.shapes.items():
        size = math.prod(info.shape) * info.dtype.itemsize
        if groups[-1] and filled + size > _GROUP_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(address)
        filled += size
    return groups


def _infos(path: str) -> dict[str, Any]:
    if not files.exists(path):
        raise FileNotFoundError(
            f"{path}: expected an Orbax checkpoint of the parameters, found none"
        )
    with _in_silence():
        return dict(ocp.metadata(path).metadata)
