"""Generated samples are as long as the published ones, and rows as full as they can be."""

import itertools

import numpy as np
import pytest

from astrollava_jax.bench import length_mixes, packing
from astrollava_jax.bench.length_mixes import MIXES, caption_words, dialogue_words
from astrollava_jax.bench.packing import Filled, filled, least_rows

MANY = 50_000


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_captions_have_the_words_of_astrollavas(rng):
    # Of 591 pictures, whose quantiles are themselves known to some percent.
    words = caption_words(MANY, rng)
    assert words.mean() == pytest.approx(100, rel=0.03)
    found = np.quantile(words, [0.5, 0.9, 0.99])
    np.testing.assert_allclose(found, [100, 182, 325], rtol=0.1)
    assert words.max() == 365


def test_dialogues_have_the_pairs_and_words_of_astrollavas(rng):
    pairs, questions, answers = dialogue_words(MANY, rng)
    shares = [np.mean(pairs == count) for count in (3, 4, 5)]
    np.testing.assert_allclose(shares, np.array([15, 240, 336]) / 591, atol=0.01)
    assert pairs.mean() == pytest.approx(4.55, rel=0.01)
    assert questions.sum() / pairs.sum() == pytest.approx(9.5, rel=0.02)
    assert answers.sum() / pairs.sum() == pytest.approx(35.4, rel=0.02)


def test_single_answers_have_the_quantiles_of_astrollavas(rng):
    median, spread = length_mixes.ANSWER_WORDS
    answers = rng.lognormal(np.log(median), spread, MANY)
    np.testing.assert_allclose(np.quantile(answers, [0.9, 0.99]), [52, 73], rtol=0.03)
    questions = rng.normal(*length_mixes.QUESTION_WORDS, MANY)
    assert np.quantile(questions, 0.99) == pytest.approx(18, rel=0.02)


def test_samples_of_astrollava_have_the_known_positions(rng):
    assert MIXES["AstroLLaVA, captions"](MANY, rng).tokens.mean() == pytest.approx(717, rel=0.02)
    assert MIXES["AstroLLaVA, dialogues"](MANY, rng).tokens.mean() == pytest.approx(911, rel=0.02)


def test_the_665k_dialogues_are_of_the_published_kinds(rng):
    assert sum(kind.thousands for kind in length_mixes.DIALOGUES.values()) == pytest.approx(665, 1)
    found = MIXES["LLaVA-665k"](MANY, rng).stretched(2048)
    assert np.mean(found.images == 0) == pytest.approx(40_688 / 665_298, abs=0.005)
    assert 800 <= found.tokens.mean() <= 900
    assert found.tokens.max() == 2048


def test_the_same_seed_gives_the_same_samples():
    for mix in MIXES.values():
        one, other = (mix(100, np.random.default_rng(3)) for _ in range(2))
        assert one.tokens.tolist() == other.tokens.tolist()


@pytest.mark.parametrize("mix", packing.REACHED_FOR)
@pytest.mark.parametrize("length", packing.LEAST)
def test_full_rows_are_as_full_as_they_are_to_be(mix, length):
    whole = MIXES[mix](20_000, np.random.default_rng(0))
    found = filled(mix, whole.stretched(length), length)
    assert found.faults() == []
    assert found.rows <= found.unlimited <= found.bound <= 1


def test_the_figures_by_hand():
    # Ten rows of 10: eight hold 6 + 4, and two a 6 alone; 92 of 100 positions.
    lengths = MIXES["AstroLLaVA"](18, np.random.default_rng(0))
    tokens = np.array([6] * 10 + [4] * 8, np.int32)
    lengths = type(lengths)(tokens, lengths.images, lengths.learned, tokens)
    found = filled("AstroLLaVA", lengths, 10)
    assert found.mean == pytest.approx(92 / 18)
    assert found.unlimited == found.bound == pytest.approx(0.92)


def test_what_falls_short_is_named():
    found = Filled("LLaVA-665k", 4096, 900.0, 0.93, {128: 0.8}, 0.945, 0.99)
    assert found.faults() == ["LLaVA-665k at 4096: 0.9300 filled, expected 0.9350"]
    assert "LLaVA-665k    4096   900     0.9300" in packing.table([found])
    assert Filled("AstroLLaVA, captions", 2048, 700.0, 0.5, {}, 0.9, 1.0).faults() == []


@pytest.mark.parametrize(
    "sizes, rows",
    [([6, 6, 6], 3), ([5, 5, 5, 5], 2), ([4] * 5, 3), ([3] * 7, 3), ([10], 1), ([7, 3, 3, 4], 2)],
)
def test_rows_that_nobody_can_do_without(sizes, rows):
    assert least_rows(np.array(sizes, np.int32), 10) == rows


def test_the_bound_is_never_above_the_best_packing(rng):
    for _ in range(60):
        sizes = rng.integers(1, 11, rng.integers(1, 7)).astype(np.int32)
        assert least_rows(sizes, 10) <= best(sizes.tolist(), 10)


def best(sizes: list[int], length: int) -> int:
    """The fewest rows, by trying every row for every sample."""
    ways = itertools.product(range(len(sizes)), repeat=len(sizes))
    fit = (
        len(set(rows))
        for rows in ways
        if all(
            sum(size for size, row in zip(sizes, rows) if row == one) <= length for one in set(rows)
        )
    )
    return min(fit)
