"""Rows: one parameter in somebody else's words. Import reads a row left to right, export back.

    Row("llm/layers/mlp/up_proj/kernel", "model.layers.{}.mlp.up_proj.weight", "f d -> d f")

`{}` is a layer number and stacks into our leading axis; `{2*+1}` are the odd layers, where a step
of our walk is a pair. A name may end with the rows of the foreign tensor that the parameter takes,
in the letters of the sentence: `qkv.weight[n*h:n*h+k*h]`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import einops
import numpy as np
from jaxtyping import Shaped

Sizes = Mapping[str, int]
Index = tuple[slice, ...]
Shape = tuple[int, ...]

_LAYER = re.compile(r"\{(?:(\d+)\*)?(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Row:
    """Our address, their name, and an einops sentence from their dims to ours."""

    address: str
    name: str
    sentence: str

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds many layers."""
        return _LAYER.search(self.name) is not None

    def tensor(self, layer: int | None = None) -> str:
        """The name of the foreign tensor of one layer (of the first, unless given)."""

        def number(match: re.Match[str]) -> str:
            return str(int(match[1] or 1) * (layer or 0) + int(match[2] or 0))

        return _LAYER.sub(number, self.name).split("[")[0]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """An einops sentence: groups of letters on their side, letters on ours."""

    theirs: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Sentence":
        """The sentence that `text` spells; our side has no groups."""
        left, right = text.split("->")
        groups = re.findall(r"\(([^)]*)\)|(\w+)", left)
        return cls(tuple(tuple((a or b).split()) for a, b in groups), tuple(right.split()))

    def their_shape(self, sizes: Sizes) -> Shape:
        """The shape on their side."""
        return tuple(_product(group, sizes) for group in self.theirs)

    def our_shape(self, sizes: Sizes) -> Shape:
        """The shape on our side."""
        return tuple(_size(letter, sizes) for letter in self.ours)

    def to_ours(self, array: Shaped[np.ndarray, "..."], sizes: Sizes) -> Shaped[np.ndarray, "..."]:
        """Their array as ours."""
        return einops.rearrange(array, f"{self._left} -> {self._right}", **self._lengths(sizes))

    def to_theirs(
        self, array: Shaped[np.ndarray, "..."], sizes: Sizes
    ) -> Shaped[np.ndarray, "..."]:
        """Our array as theirs."""
        return einops.rearrange(array, f"{self._right} -> {self._left}", **self._lengths(sizes))

    def narrow(self, index: Index, sizes: Sizes) -> tuple[Index, Sizes, Index]:
        """Their slices that hold `index` of ours, the sizes in them, and what is left to cut.

        The first letter of a group cuts their dim; an inner letter can only be cut afterwards.
        """
        wanted, left, theirs = dict(zip(self.ours, index)), dict(sizes), []
        for group in self.theirs:
            cut, inner = wanted[group[0]], _product(group[1:], sizes)
            theirs.append(slice(cut.start * inner, cut.stop * inner))
            left[group[0]] = cut.stop - cut.start
            wanted[group[0]] = slice(0, cut.stop - cut.start)
        return tuple(theirs), left, tuple(wanted[letter] for letter in self.ours)

    @property
    def _left(self) -> str:
        return " ".join(f"({' '.join(group)})" for group in self.theirs)

    @property
    def _right(self) -> str:
        return " ".join(self.ours)

    def _lengths(self, sizes: Sizes) -> dict[str, int]:
        return {letter: sizes[letter] for letter in self.ours if letter != "1"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """The part of one foreign tensor that is one layer, or the whole, of one of our parameters."""

    address: str
    layer: int | None
    name: str
    rows: slice
    """Which rows of the foreign tensor."""
    sentence: Sentence
    sizes: Sizes

    @property
    def index(self) -> Index:
        """The part of our parameter."""
        own = tuple(slice(0, size) for size in self.sentence.our_shape(self.sizes))
        return own if self.layer is None else (slice(self.layer, self.layer + 1), *own)

    def to_theirs(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """What stands in the foreign tensor, given `index` of our parameter."""
        return self.sentence.to_theirs(array if self.layer is None else array[0], self.sizes)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """One foreign tensor: its name, its shape and the pieces that make it, in order."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]


def expand(
    rows: Iterable[Row], shapes: Mapping[str, Shape], sizes: Mapping[str, Sizes]
) -> dict[str, Foreign]:
    """The foreign tensors that a table stands for, by name.

    Args:
        rows: the table.
        shapes: our parameters; each must have exactly one row.
        sizes: the letters of the sentences, by the first word of the address.

    Raises:
        ValueError: if table and parameters do not cover each other; all faults at once.
    """
    pieces: dict[str, list[Piece]] = {}
    faults, seen = [], []
    for row in rows:
        seen.append(row.address)
        try:
            for piece in _pieces(row, shapes, sizes[row.address.split("/")[0]]):
                pieces.setdefault(piece.name, []).append(piece)
        except ValueError as error:
            faults.append(f"{row.address}: {error}")
    faults += [
        f"{address}: has {seen.count(address)} rows"
        for address in shapes
        if seen.count(address) != 1
    ]
    found = {}
    for name, parts in pieces.items():
        parts.sort(key=lambda piece: piece.rows.start)
        found[name] = _join(name, parts)
        faults += _gaps(name, parts)
    if faults:
        raise ValueError("every parameter needs exactly one row:\n  " + "\n  ".join(faults))
    return found


def whole(index: Sequence[slice] | None, shape: Shape) -> Index:
    """The index with one slice per dim and plain starts and stops."""
    given = tuple(index or ())
    given += (slice(None),) * (len(shape) - len(given))
    return tuple(slice(*item.indices(size)[:2]) for item, size in zip(given, shape))


def _pieces(row: Row, shapes: Mapping[str, Shape], sizes: Sizes) -> list[Piece]:
    sentence = Sentence.parse(row.sentence)
    stacked = row.stacked
    if row.address not in shapes:
        raise ValueError("the model has no such parameter")
    shape = shapes[row.address]
    if sentence.our_shape(sizes) != shape[stacked:]:
        raise ValueError(
            f"the model has {list(shape[stacked:])}, {row.sentence!r} makes "
            f"{list(sentence.our_shape(sizes))}"
        )
    rows = _rows(row.name, sentence, sizes)
    layers = range(shape[0]) if stacked else (None,)
    return [Piece(row.address, layer, row.tensor(layer), rows, sentence, sizes) for layer in layers]


def _rows(name: str, sentence: Sentence, sizes: Sizes) -> slice:
    """The rows of the foreign tensor."""
    match = re.fullmatch(r".*\[(.*):(.*)\]", name)
    if match is None:
        return slice(0, sentence.their_shape(sizes)[0])
    return slice(_extent(match[1], sizes), _extent(match[2], sizes))


def _extent(text: str, sizes: Sizes) -> int:
    """The value of a sum of products of letters and numbers."""
    return sum(
        math.prod(int(f) if f.isdigit() else sizes[f] for f in term.split("*"))
        for term in text.split("+")
    )


def _join(name: str, parts: Sequence[Piece]) -> Foreign:
    last = parts[-1]
    shape = (last.rows.stop, *last.sentence.their_shape(last.sizes)[1:])
    return Foreign(name, shape, tuple(parts))


def _gaps(name: str, parts: Sequence[Piece]) -> list[str]:
    """Where the pieces of one foreign tensor do not follow each other."""
    end, faults = 0, []
    for part in parts:
        height = part.sentence.their_shape(part.sizes)[0]
        if (part.rows.start, part.rows.stop) != (end, end + height):
            faults.append(
                f"{name}: expected rows {end}:{end + height} for {part.address}, found "
                f"{part.rows.start}:{part.rows.stop}"
            )
        end = part.rows.stop
    return faults


def _size(letter: str, sizes: Sizes) -> int:
    return 1 if letter == "1" else sizes[letter]


def _product(letters: Iterable[str], sizes: Sizes) -> int:
    return math.prod(_size(letter, sizes) for letter in letters)
