"""From a record to a sample: read, put into words, its pictures given their places, cut to length.

Measuring (`lengths`) and building (`rows`) both come through here, so that they cannot disagree.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data import chat, example
from astrollava_jax.data.example import Example
from astrollava_jax.data.image import Mode, prepare
from astrollava_jax.data.mixture import TemplateName
from astrollava_jax.data.pieces import Rendered
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """One set of a mixture, and how its records become samples."""

    source: TFRecordSource
    template: TemplateName
    image: Mode = "pad"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A record that could not be used as it should have been."""

    record: str
    """Its id, empty where it could not be read."""
    where: str
    why: str


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
    """-1 for text, else which of the sample's image features stands here."""
    num_images: int
    """Of those that are left after the cut."""
    whole: int
    """Positions before the cut."""

    @property
    def num_learned(self) -> int:
        """How many positions have a loss: nothing comes before the first token to predict it."""
        return int(np.count_nonzero(self.learned[1:]))


def expand(
    rendered: Rendered, image_id: int, image_tokens: int, length: int | None = None
) -> Words:
    """Gives every image its positions; cuts at `length`, or before an image that lies across it."""
    is_image = rendered.tokens == image_id
    repeats = np.where(is_image, image_tokens, 1)
    stands = np.repeat(is_image, repeats)
    stop = len(stands) if length is None else min(len(stands), length)
    stop -= np.count_nonzero(stands[:stop]) % image_tokens
    stands = stands[:stop]
    return Words(
        tokens=np.repeat(rendered.tokens, repeats)[:stop].astype(np.int32),
        learned=np.repeat(rendered.learned, repeats)[:stop] & ~stands,
        features=np.where(stands, np.cumsum(stands) - 1, -1).astype(np.int32),
        num_images=int(np.count_nonzero(stands)) // image_tokens,
        whole=int(repeats.sum()),
    )


class Reader:
    """Makes samples of the records of a mixture, by record id; travels to worker processes.

    Raises:
        ValueError: if an image does not fit into `length` positions with a word beside it.
    """

    def __init__(self, parts: Sequence[Part], tokenizer: Tokenizer, facts: ImageFacts, length: int):
        if length < facts.tokens + 2:
            raise ValueError(
                f"batch.length is {length}, but one image takes {facts.tokens} positions and needs "
                f"a token before and after it: make the length at least {facts.tokens + 2}"
            )
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
            ValueError: if its bytes are damaged or no Example.
        """
        part, number = self._locate(record)
        return example.decode(part.source[number])

    def words(self, record: int, content: Example) -> Words:
        """The record's tokens.

        Raises:
            ValueError: if the template has no place for what the record holds.
        """
        part, _ = self._locate(record)
        rendered = chat.render(
            content.id,
            content.turns,
            content.caption,
            part.template,
            self.tokenizer,
            len(content.images),
        )
        return expand(rendered, self.tokenizer.image_id, self.facts.tokens, self.length)

    def pixels(self, record: int, encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
        """One of the record's pictures, as the tower wants it.

        Raises:
            ImageError: if it cannot be decoded.
        """
        part, _ = self._locate(record)
        return prepare(encoded, part.image, self.facts)

    def where(self, record: int) -> str:
        """Where the record stands, for a person."""
        part, number = self._locate(record)
        return part.source.where(number)

    def _locate(self, record: int) -> tuple[Part, int]:
        part = bisect_right(self._starts, record) - 1
        return self.parts[part], record - self._starts[part]
