"""From samples to one row of a Batch: where each stands, what is learned, which pixels it sees."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from astrollava_jax.batch import TEXT, Batch, ImageFacts, empty_rows
from astrollava_jax.data.example import Example
from astrollava_jax.data.faults import Fault, RecordError, visible
from astrollava_jax.data.image import ImageError
from astrollava_jax.data.samples import Reader, Words


class Slot(NamedTuple):
    """A sample's place in a row, as planned."""

    record: int
    sample: int
    """Its number within the step."""
    tokens: int
    images: int
    """A tile is an image."""
    learned: int


class RowShape(NamedTuple):
    """The static sizes of a row: T, K, I and S of `Batch`."""

    length: int
    learned: int
    images: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """What fills a slot."""

    slot: Slot
    words: Words
    pixels: tuple[UInt8[np.ndarray, "h w 3"], ...]
    """One array per image of `words`, or none at all: then the images are zeros."""


class Row(NamedTuple):
    """One row of a step."""

    arrays: Batch
    """Without the leading dimension."""
    records: tuple[tuple[int, str], ...]
    """(number within the step, id) of the samples."""
    faults: tuple[Fault, ...]


def build_row(samples: Sequence[Sample], shape: RowShape, facts: ImageFacts, pad_id: int) -> Batch:
    """Lays samples side by side; see the picture of `Batch`."""
    row = empty_rows(1, *shape, facts).map(lambda field: field[0])
    row.tokens[:] = pad_id
    position = image = learned = 0
    for segment, sample in enumerate(samples, start=1):
        words = sample.words
        here = slice(position, position + len(words.tokens))
        row.tokens[here] = words.tokens
        row.targets[here][:-1] = words.tokens[1:]
        row.segment_ids[here] = segment
        row.positions[here] = np.arange(len(words.tokens))
        row.feature_index[here] = np.where(
            words.features < 0, words.features, words.features + image * facts.tokens
        )
        # The loss on a token is at the position before it.
        places = position + np.flatnonzero(words.learned[1:])
        row.learned_index[learned : learned + len(places)] = places
        row.learned_sample[learned : learned + len(places)] = sample.slot.sample
        for number, pixels in enumerate(sample.pixels):
            row.images[image + number] = pixels
        position, image, learned = here.stop, image + words.num_images, learned + len(places)
    # What was refused takes no place: best fit puts all of it into one row.
    lengths = [len(sample.words.tokens) for sample in samples if len(sample.words.tokens)]
    row.lengths[: len(lengths)] = lengths
    return row


class RowBuilder:
    """Fills planned slots; a record that fails keeps its slot, with nothing learned in it."""

    def __init__(self, reader: Reader, shape: RowShape):
        self._reader = reader
        self._shape = shape
        self._pad_id = reader.tokenizer.pad_id

    def __call__(self, slots: Sequence[Slot]) -> Row:
        """The row, the ids of its records, and what went wrong with them."""
        samples, records, faults = [], [], []
        for slot in slots:
            sample, name, fault = self._fill(slot)
            samples.append(sample)
            records.append((slot.sample, name))
            faults += [fault] if fault else []
        arrays = build_row(samples, self._shape, self._reader.facts, self._pad_id)
        return Row(arrays, tuple(records), tuple(faults))

    def _fill(self, slot: Slot) -> tuple[Sample, str, Fault | None]:
        """The sample of a slot and its record's id; with a fault, nothing in it is learned."""
        name, where = "", self._reader.where(slot.record)
        words = self._blank(slot)
        try:
            content = self._reader.read(slot.record)
            name = visible(content.id)
            if slot.tokens == 0 and self._refuses(slot, content):
                return Sample(slot, words, ()), name, None
            found = self._reader.words(slot.record, content)
            _check_planned(slot, found)
            words = found
            pixels = [
                self._reader.pixels(slot.record, encoded)
                for encoded in content.images[: found.num_pictures]
            ]
        except ValueError as error:
            unlearned = dataclasses.replace(words, learned=np.zeros_like(words.learned))
            return Sample(slot, unlearned, ()), name or where, Fault.of(error, name, where)
        return Sample(slot, words, tuple(itertools.chain.from_iterable(pixels))), name, None

    def _refuses(self, slot: Slot, content: Example) -> bool:
        """Whether the template has no place for a record: told and allowed before step 1."""
        try:
            self._reader.words(slot.record, content)
        except ImageError:
            return False
        except ValueError:
            return True
        return False

    def _blank(self, slot: Slot) -> Words:
        """What stands where a record cannot be read: as long as planned, and empty."""
        return Words(
            tokens=np.full(slot.tokens, self._pad_id, np.int32),
            learned=np.zeros(slot.tokens, bool),
            features=np.full(slot.tokens, TEXT, np.int32),
            num_pictures=0,
            num_images=slot.images,
            whole=slot.tokens,
        )


def _check_planned(slot: Slot, words: Words) -> None:
    planned = (slot.tokens, slot.images, slot.learned)
    found = (len(words.tokens), words.num_images, words.num_learned)
    if planned != found:
        raise RecordError(
            "the plan expects {} tokens, {} images and {} learned tokens, ".format(*planned)
            + "the record gives {}, {} and {}: it is not as it was measured; ".format(*found)
            + "remove the plan folder to measure again",
            "changed",
        )
