"""Joins what a table asks for with what the files hold, and names everything that does not fit."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from astrollava_jax.weights.layout import Foreign, Index, Piece, Shape, whole
from astrollava_jax.weights.tensors import Tensors

READABLE = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32))
"""What a parameter may be stored as."""

Ignored = tuple[tuple[str, str], ...]
"""Patterns of names that are read by no row, each with the reason."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """One parameter of ours and the foreign tensors that make it."""

    tensors: Tensors
    pieces: tuple[Piece, ...]
    dtype: np.dtype

    @property
    def folder(self) -> str:
        """The folder whose files give it."""
        return self.tensors.folder

    @property
    def shape(self) -> Shape:
        """The shape on our side."""
        first = self.pieces[0]
        own = first.sentence.our_shape(first.sizes)
        return own if first.layer is None else (len(self.pieces), *own)

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A part of the parameter, in the dtype of the file; other rows and layers stay unread."""
        index = whole(index, self.shape)
        if self.pieces[0].layer is None:
            return self._read(self.pieces[0], index)
        layers, rest = index[0], index[1:]
        result = np.empty([item.stop - item.start for item in index], self.dtype)
        for place, piece in enumerate(self.pieces[layers]):
            result[place] = self._read(piece, rest)
        return result

    def _read(self, piece: Piece, index: Index) -> Shaped[np.ndarray, "..."]:
        theirs, sizes, left = piece.sentence.narrow(index, piece.sizes)
        start = piece.rows.start
        rows = slice(theirs[0].start + start, theirs[0].stop + start)
        array = self.tensors.read(piece.name, (rows, *theirs[1:]))
        return piece.sentence.to_ours(array, sizes)[left]

    def fingerprint(self) -> str:
        """A digest of the bytes of the foreign tensors, layer by layer, as the files hold them."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            for block in self.tensors.blocks(piece.name, piece.rows):
                digest.update(block)
        return digest.hexdigest()[:32]


def bind(
    wanted: Mapping[str, Foreign], tensors: Tensors, ignored: Ignored = ()
) -> dict[str, Bound]:
    """The parameters that a folder's files give, by address.

    Raises:
        ValueError: if a tensor is missing, unmapped, wrongly shaped or of a wrong kind; lists all.
    """
    faults = _faults(wanted, tensors, ignored)
    grouped: dict[str, list[Piece]] = {}
    for foreign in wanted.values():
        for piece in foreign.pieces:
            grouped.setdefault(piece.address, []).append(piece)
    found = {}
    for address, pieces in grouped.items():
        pieces.sort(key=lambda piece: piece.layer or 0)
        kinds = {tensors.infos[p.name].dtype for p in pieces if p.name in tensors.infos}
        if len(kinds) > 1:
            faults.append(f"{address}: its layers have several dtypes: {sorted(map(str, kinds))}")
        elif kinds:
            found[address] = Bound(tensors, tuple(pieces), kinds.pop())
    if faults:
        raise ValueError(
            f"{tensors.folder}: {len(faults)} fault(s) between its tensors and its config.json\n  "
            + "\n  ".join(faults)
        )
    return found


def _faults(wanted: Mapping[str, Foreign], tensors: Tensors, ignored: Ignored) -> list[str]:
    faults = []
    for name, foreign in wanted.items():
        info = tensors.infos.get(name)
        if info is None:
            faults.append(f"{name}: missing (it gives {foreign.pieces[0].address})")
        elif info.shape != foreign.shape:
            faults.append(f"{name}: expected {list(foreign.shape)}, found {list(info.shape)}")
        elif info.dtype not in READABLE:
            kinds = ", ".join(map(str, READABLE))
            faults.append(f"{name}: expected one of {kinds}, found {info.dtype}")
    return faults + [
        f"{name}: unmapped: no parameter takes it, and there is no reason to leave it out"
        for name in unmapped(tensors.infos, wanted, ignored)
    ]


def unmapped(names: Iterable[str], wanted: Mapping[str, Foreign], ignored: Ignored) -> list[str]:
    """The names that are neither wanted nor ignored for a reason."""
    return [
        name
        for name in names
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern, _ in ignored)
    ]
