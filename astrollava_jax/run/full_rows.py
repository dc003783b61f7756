"""The full rows of a step that is planned without its records: who stands where, and what in it.

What a plan counts as useful work and what `--measure` computes are of the same rows.
"""

import numpy as np

from astrollava_jax.batch import TEXT, Batch, ImageFacts
from astrollava_jax.data.rows import Sample, Slot, build_row
from astrollava_jax.data.samples import Words
from astrollava_jax.run.planned_rows import Rows
from astrollava_jax.training.flops import Work

SEED = 0


def full_rows(rows: Rows) -> list[list[Slot]]:
    """The samples of each row, as many in all as the step has; rows that get none stay empty.

    A sample begins with a word; then comes its picture, as far as the row has room for pictures;
    then words, of which all samples of a row have as many. These are learned, as far as the row
    has slots.
    """
    found, number = [], 0
    for share in np.array_split(np.arange(rows.samples), rows.count):
        slots, room = [], rows.shape.learned
        for tokens, images in _sizes(rows, len(share)):
            features = len(rows.picture.features) if images else 0
            learned = min(room, tokens - features - 1)
            slots.append(Slot(number, number, tokens, images, learned))
            number, room = number + 1, room - learned
        found.append(slots)
    return found


def _sizes(rows: Rows, samples: int) -> list[tuple[int, int]]:
    """Positions and images of each sample of a row."""
    if samples == 0:
        return []
    tiles, features = rows.picture.tiles, len(rows.picture.features)
    room = rows.shape.length - 2 * samples  # beside a picture: a word before it, and one to learn
    pictures = min(samples, rows.shape.images // tiles, max(0, room) // features)
    words, more = divmod(rows.shape.length - pictures * features, samples)
    return [
        (words + (n < more) + (n < pictures) * features, (n < pictures) * tiles)
        for n in range(samples)
    ]


def work(rows: Rows) -> Work:
    """What a step of full rows holds."""
    slots = [slot for row in full_rows(rows) for slot in row]
    return Work(
        tokens=sum(slot.tokens for slot in slots),
        learned=sum(slot.learned for slot in slots),
        attended=sum(slot.tokens * (slot.tokens + 1) // 2 for slot in slots),
        images=sum(slot.images for slot in slots),
    )


def random_rows(rows: Rows, facts: ImageFacts, vocabulary: int) -> Batch:
    """The rows [B, ...] with random words and pixels, the same each time.

    Args:
        rows: the sizes.
        facts: of the model's images.
        vocabulary: of how many words the tokens are taken; pictures stand at token 0.
    """
    random = np.random.default_rng(SEED)

    def sample(slot: Slot) -> Sample:
        tokens = random.integers(1, vocabulary, slot.tokens, dtype=np.int32)
        features = np.full(slot.tokens, TEXT, np.int32)
        if slot.images:
            features[1 : 1 + len(rows.picture.features)] = rows.picture.features
        tokens[features != TEXT] = 0
        words = (features == TEXT) & (np.arange(slot.tokens) > 0)
        learned = words & (np.cumsum(words) <= slot.learned)
        pixels = random.integers(0, 256, (slot.images, facts.size, facts.size, 3), dtype=np.uint8)
        pictures = int(slot.images > 0)
        filling = Words(tokens, learned, features, pictures, slot.images, slot.tokens)
        return Sample(slot, filling, tuple(pixels))

    built = [
        build_row([sample(slot) for slot in row], rows.shape, facts, pad_id=0)
        for row in full_rows(rows)
    ]
    return Batch(*map(np.stack, zip(*built)))
