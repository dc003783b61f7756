"""The rows that a plan counts and `--measure` computes: as packing would lay such samples."""

import dataclasses

import numpy as np
import pytest

from astrollava_jax.batch import NEWLINE, TEXT, ImageFacts
from astrollava_jax.data.rows import RowShape
from astrollava_jax.data.tiles import Layout, layout, one_image
from astrollava_jax.run.full_rows import full_rows, random_rows, work
from astrollava_jax.run.planned_rows import Rows
from astrollava_jax.training.flops import Work

FACTS = ImageFacts(
    size=28, patch=14, tokens=4, pad_color=(0, 0, 0), pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3,
    grid=((28, 56), (56, 28)),
)  # fmt: skip


def rows(
    length: int, learned: int, images: int, count: int, samples: int,
    picture: Layout | None = None,
) -> Rows:  # fmt: skip
    shape = RowShape(length, learned, images, -(-samples // count))
    return Rows(shape, count, samples, picture or one_image(FACTS), "assumed")


def test_a_row_is_laid_as_the_picture_of_batch_draws_it():
    """Two samples of 8 and 7 positions, each with a picture of 4 features behind its first word."""
    batch = random_rows(rows(15, 8, 2, count=2, samples=4), FACTS, vocabulary=50)
    expected = {
        "segment_ids": 8 * [1] + 7 * [2],
        "positions": [*range(8), *range(7)],
        "feature_index": [-1, 0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7, -1, -1],
        # The loss on a word is at the position before it; no first word of a sample has any.
        "learned_index": [4, 5, 6, 12, 13, -1, -1, -1],
    }
    for name, row in expected.items():
        np.testing.assert_array_equal(getattr(batch, name), [row, row], err_msg=name)
    np.testing.assert_array_equal(
        batch.learned_sample, [[0, 0, 0, 1, 1, -1, -1, -1], [2, 2, 2, 3, 3, -1, -1, -1]]
    )
    shown = batch.feature_index != TEXT
    assert not batch.tokens[shown].any() and batch.tokens[~shown].min() > 0
    assert batch.tokens.max() < 50
    for row, places in enumerate(batch.learned_index):
        places = places[places >= 0]
        np.testing.assert_array_equal(batch.targets[row, places], batch.tokens[row, places + 1])
    pictures = batch.images.reshape(4, -1)
    assert batch.images.shape == (2, 2, 28, 28, 3) and pictures.std(1).min() > 50
    assert len(np.unique(pictures, axis=0)) == 4
    again = random_rows(rows(15, 8, 2, count=2, samples=4), FACTS, vocabulary=50)
    for ours, theirs in zip(batch, again):
        np.testing.assert_array_equal(ours, theirs)


def test_useful_work_is_what_can_be_counted_in_the_rows():
    assert work(rows(15, 8, 2, count=1, samples=2)) == Work(
        tokens=15, learned=5, attended=36 + 28, images=2
    )


CASES = {
    "fewer samples than places": rows(15, 8, 2, count=3, samples=5),
    "rows that nothing fills": rows(15, 8, 2, count=4, samples=2),
    "fewer pictures than samples": rows(20, 8, 1, count=2, samples=6),
    "no room for a picture": rows(7, 4, 2, count=1, samples=2),
    "of any resolution": rows(40, 40, 3, 1, 1, layout((56, 28), FACTS)),
}
"""Of kept plans too, whose rows are not alike."""


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_sizes_rows_are_full_and_hold_what_is_counted(case):
    given = CASES[case]
    batch = random_rows(given, FACTS, vocabulary=50)
    assert batch.tokens.shape == (given.count, given.shape.length)
    in_use = batch.segment_ids.any(axis=1)
    assert in_use.sum() == min(given.count, given.samples) and batch.segment_ids[in_use].all()
    learned = batch.learned_sample >= 0
    np.testing.assert_array_equal(learned, batch.learned_index >= 0)
    assert set(batch.learned_sample[learned]) <= set(range(given.samples))
    starts = (batch.positions == 0) & (batch.segment_ids > 0)
    assert starts.sum() == given.samples
    counted = Work(
        tokens=int(np.count_nonzero(batch.segment_ids)),
        learned=int(learned.sum()),
        attended=int(np.sum((batch.positions + 1) * (batch.segment_ids > 0))),
        images=int(np.sum(batch.images.any(axis=(2, 3, 4)))),
    )
    assert work(given) == counted


def test_a_picture_in_tiles_stands_as_it_is_laid_out():
    given = CASES["of any resolution"]
    placed = random_rows(given, FACTS, vocabulary=50).feature_index[0]
    np.testing.assert_array_equal(placed[1 : 1 + len(given.picture.features)],
                                  given.picture.features)  # fmt: skip
    assert np.count_nonzero(placed == NEWLINE) == 4
    assert full_rows(given)[0][0].images == 3


def test_learned_words_end_with_the_slots_of_the_row():
    narrow = dataclasses.replace(CASES["fewer samples than places"], count=1, samples=1)
    batch = random_rows(narrow, FACTS, vocabulary=50)
    np.testing.assert_array_equal(batch.learned_index[0], np.arange(4, 12))
