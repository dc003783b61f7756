"""Joins what a table asks for with what the files hold, and names everything that does not fit."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from astrollava_jax.weights.dtypes import READ_AS, cast, common
from astrollava_jax.weights.layout import Foreign, Index, Piece, Shape, whole
from astrollava_jax.weights.tensors import Tensors

Ignored = tuple[tuple[str, str], ...]
"""Patterns of names that are read by no row, each with the reason."""
Copies = tuple[tuple[str, str], ...]
"""Patterns of names that are read by no row, each with the parameter whose numbers it must have."""

_QUANTISED = re.compile(
    r".*\.(weight_scale(_inv)?|input_scale|[kv]_scale"  # fp8
    r"|qweight|qzeros|scales|g_idx"  # GPTQ and AWQ
    r"|SCB|absmax|quant_map|quant_state\..*)"  # bitsandbytes
)
_HINTS = {
    "llm/lm_head/kernel": "; where the head is the embedding, config.json says "
    "tie_word_embeddings: true"
}


class Misfit(ValueError):
    """Tensors that do not fit what is wanted of them; the message lists all `faults`."""

    def __init__(self, folder: str, faults: Sequence[str]):
        super().__init__(
            f"{folder}: {len(faults)} fault(s) between its tensors and its config.json\n  "
            + "\n  ".join(_folded(faults))
            + "\nfetch both anew from one place; where they are one model's, correct config.json"
        )
        self.faults = faults


@dataclasses.dataclass(frozen=True)
class Bound:
    """One parameter of ours and the foreign tensors that make it."""

    tensors: Tensors
    pieces: tuple[Piece, ...]
    dtype: np.dtype
    """What it is read as."""

    @property
    def folder(self) -> str:
        """The folder whose files give it."""
        return self.tensors.folder

    @property
    def files(self) -> tuple[str, ...]:
        """The files in which its tensors lie."""
        return tuple(dict.fromkeys(self.tensors.file_of(piece.name) for piece in self.pieces))

    @property
    def shape(self) -> Shape:
        """The shape on our side."""
        first = self.pieces[0]
        own = first.sentence.our_shape(first.sizes)
        return own if first.layer is None else (len(self.pieces), *own)

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A part of the parameter, in `dtype`; other rows and layers stay unread."""
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
        array = cast(self.tensors.read(piece.name, (rows, *theirs[1:])), self.dtype, piece.name)
        return piece.sentence.to_ours(array, sizes)[left]

    def fingerprint(self) -> str:
        """A digest of the bytes of the foreign tensors, layer by layer, as the files hold them."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            for block in self.tensors.blocks(piece.name, piece.rows):
                digest.update(block)
        return digest.hexdigest()[:32]


def bind(
    wanted: Mapping[str, Foreign], tensors: Tensors, ignored: Ignored = (), copies: Copies = ()
) -> dict[str, Bound]:
    """The parameters that a folder's files give, by address.

    Raises:
        Misfit: if a tensor is missing, unmapped, wrongly shaped, of a wrong kind, or no copy of
            what it must be one of; lists all.
        ValueError: if the tensors are quantised; says that alone.
    """
    _check_plain(wanted, tensors)
    faults = _faults(wanted, tensors, (*ignored, *copies)) + _untrue(wanted, tensors, copies)
    grouped: dict[str, list[Piece]] = {}
    for foreign in wanted.values():
        for piece in foreign.pieces:
            grouped.setdefault(piece.address, []).append(piece)
    found = {}
    for address, pieces in grouped.items():
        pieces.sort(key=lambda piece: piece.layer or 0)
        kinds = {tensors.infos[p.name].dtype for p in pieces if p.name in tensors.infos}
        if kinds and kinds <= READ_AS.keys():
            found[address] = Bound(tensors, tuple(pieces), common(kinds))
    if faults:
        raise Misfit(tensors.folder, faults)
    return found


def conversions(bound: Iterable[Bound]) -> tuple[str, ...]:
    """What a person should know of tensors that are read as something else than they are stored."""
    found: dict[tuple[np.dtype, np.dtype], set[str]] = {}
    for one in bound:
        for piece in one.pieces:
            stored = one.tensors.infos[piece.name].dtype
            if stored != one.dtype:
                found.setdefault((stored, one.dtype), set()).add(piece.name)
    return tuple(
        f"{len(names)} tensor(s) are {stored}: read and written as {dtype}, "
        f"{'rounded' if stored.itemsize > dtype.itemsize else 'which changes no number'} "
        f"({min(names)}{', ...' if len(names) > 1 else ''})"
        for (stored, dtype), names in found.items()
    )


def _faults(wanted: Mapping[str, Foreign], tensors: Tensors, ignored: Ignored) -> list[str]:
    faults = []
    for name, foreign in wanted.items():
        info = tensors.infos.get(name)
        if info is None:
            address = foreign.pieces[0].address
            faults.append(f"{name}: missing (it gives {address}){_HINTS.get(address, '')}")
        elif info.shape != foreign.shape:
            expected = f"expected {list(foreign.shape)}, found {list(info.shape)}"
            faults.append(f"{name}: {expected} in {tensors.file_of(name)}")
        elif info.dtype not in READ_AS:
            kinds = ", ".join(map(str, READ_AS))
            place = tensors.file_of(name)
            faults.append(f"{name}: expected one of {kinds}, found {info.dtype} in {place}")
    return faults + [
        f"{name}: unmapped: no parameter takes it, and there is no reason to leave it out "
        f"({tensors.file_of(name)})"
        for name in unmapped(tensors.infos, wanted, ignored)
    ]


def _untrue(wanted: Mapping[str, Foreign], tensors: Tensors, copies: Copies) -> list[str]:
    """The copies that differ from what they should be copies of."""
    origins = {f.pieces[0].address: name for name, f in wanted.items() if name in tensors.infos}
    return [
        f"{name}: config.json says that it is {origins[address]} (tie_word_embeddings: true), but "
        "their numbers differ: say false to keep both"
        for pattern, address in copies
        for name in tensors.infos
        if re.fullmatch(pattern, name)
        and address in origins
        and not _equal(tensors, name, origins[address])
    ]


def _equal(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors have the same bytes."""
    info = tensors.infos[one]
    if info != tensors.infos[other]:
        return False
    rows = slice(0, info.shape[0])
    return all(a == b for a, b in zip(tensors.blocks(one, rows), tensors.blocks(other, rows)))


def _check_plain(wanted: Mapping[str, Foreign], tensors: Tensors) -> None:
    """Raises where kernels have scales of their own: without them their numbers mean nothing."""
    scales = [n for n in tensors.infos if n not in wanted and _QUANTISED.fullmatch(n)]
    if scales:
        raise ValueError(
            f"{tensors.folder}: is quantised: {len(scales)} tensor(s) are scales and the like "
            f"({scales[0]}, ...). Quantised checkpoints are not read: take the model in bfloat16 "
            "or float16, or undo it with the library that wrote it"
        )


def _folded(faults: Sequence[str]) -> list[str]:
    """Faults that differ in the layer's number alone, once for all layers."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"\.\d+\.", ".{}.", fault), []).append(fault)
    return [f"{f} (so {len(more)} more layers)" if more else f for f, *more in kinds.values()]


def unmapped(names: Iterable[str], wanted: Mapping[str, Foreign], ignored: Ignored) -> list[str]:
    """The names that are neither wanted nor ignored for a reason."""
    return [
        name
        for name in names
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern, _ in ignored)
    ]
