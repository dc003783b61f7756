"""Our own layout: parameters by address in one Orbax checkpoint, and the facts beside them.

astrollava.json   the format's version, the config, and what the model was made from
sidecars/         config, tokenizer, processor and chat template files, byte for byte
params/           Orbax: one array per address, in the dtype it was stored as
"""

import hashlib
import math
from typing import Any

import numpy as np
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

from astrollava_jax import files
from astrollava_jax.config import parse, plain
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.weights import llava
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.source import Source

FACTS = "astrollava.json"
FORMAT = 1
_GROUP_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 25
_FIELDS = ("layout", "words", "image_mode", "template")


class OrbaxSource(Source):
    """A model in our own layout. The parameter that was read last stays in memory."""

    def __init__(self, folder: files.Where):
        self._folder = str(folder)
        facts = files.read_json_object(files.join(folder, FACTS))
        if facts.get("format") != FORMAT:
            raise ValueError(
                f"{folder}: expected format {FORMAT} in {FACTS}, found {facts.get('format')!r}: it "
                "was written by another version of astrollava"
            )
        beside = files.join(folder, "sidecars")
        sidecars = {
            name: files.read_bytes(files.join(beside, name)) for name in files.names(beside)
        }
        tokenized = "tokenizer.json" in sidecars or "tokenizer.model" in sidecars
        super().__init__(
            config=parse(LlavaConfig, facts["config"], files.join(folder, FACTS)),
            sidecars=sidecars,
            tokenizer_folder=beside if tokenized else None,
            **{name: facts[name] for name in _FIELDS},
        )
        self._path = files.absolute(files.join(folder, "params"))
        self._infos = _infos(self._path)
        self._last: tuple[str, Any] = ("", None)
        self._check()

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter; Orbax reads it whole."""
        if self._last[0] != address:
            wanted = {name: ocp.PLACEHOLDER for name in self._infos}
            self._last = ("", None)
            loaded = ocp.load(self._path, wanted | {address: self._infos[address]})
            self._last = (address, loaded[address])
        array = self._last[1]
        return array if index is None else array[index]

    def dtype(self, address: str) -> np.dtype:
        """What a parameter is stored as."""
        return np.dtype(self._infos[address].dtype)

    def fingerprint(self, address: str) -> str:
        """A digest of the numbers of a parameter."""
        return hashlib.sha256(self.read(address).tobytes()).hexdigest()[:32]

    def folder_of(self, address: str) -> str:
        """This directory."""
        return self._folder

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


def write(folder: files.Where, source: Source) -> None:
    """Writes a source in our layout into an empty folder, one parameter at a time."""
    facts = {name: getattr(source, name) for name in _FIELDS}
    files.write_json(
        files.join(folder, FACTS), {"format": FORMAT, "config": plain(source.config)} | facts
    )
    beside = files.make_folder(files.join(folder, "sidecars"))
    for name, content in source.sidecars.items():
        files.write_bytes(files.join(beside, name), content)
    path = files.absolute(files.join(folder, "params"))
    with _in_small_chunks():
        for group in _groups(source):
            ocp.partial.save(path, {address: source.read(address) for address in group})
        ocp.partial.finalize(path)


def _in_small_chunks() -> ocp.Context:
    """Orbax works chunk by chunk: of an array that is one chunk it holds several copies."""
    kind = ocp.options.ArrayOptions
    storage = kind.Saving.StorageOptions(chunk_byte_size=_CHUNK_BYTES)
    return ocp.Context(
        array_options=kind(saving=kind.Saving(storage_options=storage)),
        memory_options=ocp.options.MemoryOptions(deepcopy_host_arrays=False),
    )


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
    return dict(ocp.metadata(path).metadata)
