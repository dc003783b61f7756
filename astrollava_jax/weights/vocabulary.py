"""Makes room for `<image>` and a pad in the tables of words, and takes it away again."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Shaped

from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.weights.binding import Bound
from astrollava_jax.weights.layout import Index, Shape, whole

MULTIPLE = 64
"""A table that must grow gets a multiple of this many rows, as llava-1.5-7b-hf has it (32064)."""

TABLES = {"llm/embed/embedding": 0, "llm/lm_head/kernel": 1}
"""The parameters with one row or column per word, and which dim that is."""

_ROWS_AT_ONCE = 4096


def own_words(tokenizer: Tokenizer) -> int:
    """The ids that the tokenizer has without an `<image>` and a pad at its end."""
    count = tokenizer.vocab_size
    while count - 1 in (tokenizer.image_id, tokenizer.pad_id):
        count -= 1
    return count


def rows_needed(tokenizer: Tokenizer, rows: int, folder: str) -> int:
    """The rows that a table of `rows` must have for this tokenizer.

    Raises:
        ValueError: if the tokenizer has more words of its own than the table.
    """
    if own_words(tokenizer) > rows:
        raise ValueError(
            f"{folder}: the tokenizer does not fit the model: it has {own_words(tokenizer)} words, "
            f"the embedding {rows} rows"
        )
    if tokenizer.vocab_size <= rows:
        return rows
    return rounded(tokenizer.vocab_size)


def rounded(words: int) -> int:
    """The rows of a table that has grown for so many words."""
    return -(-words // MULTIPLE) * MULTIPLE


def note(tokenizer: Tokenizer, rows: int, grown: int) -> str:
    """What a person should know of the words that were added to a tokenizer."""
    ids = f"<image> is {tokenizer.image_id}, the pad {tokenizer.pad_id}"
    if grown == rows:
        return f"{ids}: the vocabulary has {rows} rows, which is enough"
    return (
        f"the vocabulary grew from {rows} to {grown} rows: {ids}; each new row is the mean of the "
        f"{rows}"
    )


@dataclasses.dataclass(frozen=True)
class Grown:
    """A table of words with more rows than its files have; each new row is the mean of theirs."""

    bound: Bound
    dim: int
    rows: int

    @property
    def folder(self) -> str:
        """The folder whose files give it."""
        return self.bound.folder

    @property
    def files(self) -> tuple[str, ...]:
        """The files in which its tensors lie."""
        return self.bound.files

    @property
    def dtype(self) -> np.dtype:
        """What it is stored as."""
        return self.bound.dtype

    @property
    def shape(self) -> Shape:
        """The shape with the new rows."""
        shape = list(self.bound.shape)
        shape[self.dim] = self.rows
        return tuple(shape)

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A part of the table."""
        index = whole(index, self.shape)
        old, cut, other = self.bound.shape[self.dim], index[self.dim], index[1 - self.dim]
        result = np.empty([item.stop - item.start for item in index], self.dtype)
        along = np.moveaxis(result, self.dim, 0)
        count = max(0, min(cut.stop, old) - cut.start)
        if count:
            rows = slice(cut.start, cut.start + count)
            part = self.bound.read((rows, other) if self.dim == 0 else (other, rows))
            along[:count] = np.moveaxis(part, self.dim, 0)
        if count < len(along):
            along[count:] = self._mean[other]
        return result

    def fingerprint(self) -> str:
        """The digest of what the files have."""
        return self.bound.fingerprint()

    @functools.cached_property
    def _mean(self) -> Shaped[np.ndarray, " D"]:
        """The mean row, summed in float64 some rows at a time."""
        count = self.bound.shape[self.dim]
        total = np.zeros(self.bound.shape[1 - self.dim])
        for start in range(0, count, _ROWS_AT_ONCE):
            rows, everything = slice(start, min(start + _ROWS_AT_ONCE, count)), slice(None)
            part = self.bound.read((rows, everything) if self.dim == 0 else (everything, rows))
            total += part.sum(self.dim, dtype=np.float64)
        return (total / count).astype(self.dtype)
