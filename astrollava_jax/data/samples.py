"""From a record to a sample: read, put into words, its pictures given their places, cut to length.

Measuring (`lengths`) and building (`rows`) both come through here, so that they cannot disagree.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from astrollava_jax.batch import TEXT, ImageFacts
from astrollava_jax.data import chat, example
from astrollava_jax.data.dialogue import shortened
from astrollava_jax.data.example import Example
from astrollava_jax.data.image import Mode
from astrollava_jax.data.mixture import TemplateName
from astrollava_jax.data.pieces import Rendered
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tiles import Layout, grid_of, layout_of, prepare_tiles
from astrollava_jax.data.tokenizer import Tokenizer

_CHARACTERS = 32
"""Per position of a row: what a record says beyond them is not even tokenised. Tokens of words have
some four; runs of spaces and dashes have more."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One set of a mixture, and how its records become samples."""

    source: TFRecordSource
    template: TemplateName
    image: Mode = "pad"


@dataclasses.dataclass(frozen=True)
class Words:
    """A sample as the decoder sees it, with two positions per image.

    ```
    tokens     <s> <img> <img>  a  star </s>
    learned     .    .     .    #    #    #
    features   -1    0     1   -1   -1   -1
    ```
    """

    tokens: Int32[np.ndarray, "T"]
    """Image positions hold the image token."""
    learned: Bool[np.ndarray, "T"]
    """True for a token that is to be predicted."""
    features: Int32[np.ndarray, "T"]
    """As `feature_index` of `Batch`, counted within the sample."""
    num_pictures: int
    """Of those that are left after the cut."""
    num_images: int
    """What the tower encodes for these: a tile is an image."""
    whole: int
    """Positions before the cut, at most those of the characters that are tokenised."""

    @property
    def num_learned(self) -> int:
        """How many positions have a loss: nothing comes before the first token to predict it."""
        return int(np.count_nonzero(self.learned[1:]))


def expand(
    rendered: Rendered,
    image_id: int,
    layouts: Sequence[Layout],
    image_tokens: int,
    length: int | None = None,
) -> Words:
    """Gives every picture its positions; cuts at `length`, or before one that lies across it.

    Args:
        rendered: with one `image_id` per picture.
        image_id: what stands for a picture.
        layouts: of the pictures.
        image_tokens: features of one image.
        length: of a row; None for no cut.
    """
    is_picture = rendered.tokens == image_id
    assert np.count_nonzero(is_picture) == len(layouts)
    repeats = np.ones(len(is_picture), np.int64)
    repeats[is_picture] = [len(layout.features) for layout in layouts]
    ends = np.cumsum(repeats)
    starts, whole = ends - repeats, int(repeats.sum())
    stop = whole if length is None else min(whole, length)
    stop = int(min([stop, *starts[is_picture & (starts < stop) & (ends > stop)]]))
    features = np.full(whole, TEXT, np.int32)
    images = 0
    for start, layout in zip(starts[is_picture], layouts):
        shifted = layout.features + images * image_tokens
        here = slice(start, start + len(shifted))
        features[here] = np.where(layout.features < 0, layout.features, shifted)
        images += layout.tiles
    num_pictures = int(np.count_nonzero(is_picture & (ends <= stop)))
    return Words(
        tokens=np.repeat(rendered.tokens, repeats)[:stop].astype(np.int32),
        learned=np.repeat(rendered.learned & ~is_picture, repeats)[:stop],
        features=features[:stop],
        num_pictures=num_pictures,
        num_images=sum(layout.tiles for layout in layouts[:num_pictures]),
        whole=whole,
    )


class Reader:
    """Makes samples of the records of a mixture, by record id; travels to worker processes.

    Raises:
        ValueError: if an image does not fit into `length` positions with a word beside it, or
            pictures are to be cut into tiles and the model has no grid.
    """

    def __init__(self, parts: Sequence[Part], tokenizer: Tokenizer, facts: ImageFacts, length: int):
        # Of any resolution too: so many may be left of a picture that is a thin line.
        if length < facts.tokens + 2:
            raise ValueError(
                f"batch.length is {length}, but one image takes {facts.tokens} positions and needs "
                f"a token before and after it: make the length at least {facts.tokens + 2}"
            )
        if any(part.image == "anyres" for part in parts):
            grid_of(facts)
        self.parts = tuple(parts)
        self.tokenizer = tokenizer
        self.facts = facts
        self.length = length
        self._starts = list(itertools.accumulate((len(p.source) for p in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, record: int) -> Example:
        """The record.

        Raises:
            RecordError: if its bytes are damaged or no Example.
            StorageError, FileNotFoundError: if it cannot be read at all, in some half a minute.
        """
        part, number = self._locate(record)
        return example.decode(part.source[number])

    def words(self, record: int, content: Example) -> Words:
        """The record's tokens.

        Raises:
            ImageError: if a picture is to be cut into tiles and its size cannot be read.
            ValueError: if the template has no place for what the record holds, or no row for one
                of its pictures.
        """
        part, _ = self._locate(record)
        turns, caption = shortened(content.turns, content.caption, _CHARACTERS * self.length)
        rendered = chat.render(
            content.id,
            turns,
            caption,
            part.template,
            self.tokenizer,
            len(content.images),
        )
        layouts = [layout_of(encoded, part.image, self.facts) for encoded in content.images]
        self._check_fits(content.id, layouts)
        image_id, image_tokens = self.tokenizer.image_id, self.facts.tokens
        return expand(rendered, image_id, layouts, image_tokens, self.length)

    def pixels(self, record: int, encoded: bytes) -> UInt8[np.ndarray, "tiles h w 3"]:
        """One of the record's pictures, as the images that the tower wants.

        Raises:
            ImageError: if it cannot be decoded.
        """
        part, _ = self._locate(record)
        return prepare_tiles(encoded, part.image, self.facts)

    def where(self, record: int) -> str:
        """Where the record stands, for a person."""
        part, number = self._locate(record)
        return part.source.where(number)

    def _check_fits(self, name: str, layouts: Sequence[Layout]) -> None:
        for number, layout in enumerate(layouts):
            needed = len(layout.features) + 2
            if needed > self.length:
                raise ValueError(
                    f"record {name!r}: its image {number} takes {needed - 2} positions and needs a "
                    f"token before and after it, but batch.length is {self.length}: make that at "
                    f"least {needed}"
                )

    def _locate(self, record: int) -> tuple[Part, int]:
        part = bisect_right(self._starts, record) - 1
        return self.parts[part], record - self._starts[part]
