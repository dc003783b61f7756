"""How long samples are: generators that imitate two published data sets.

AstroLLaVA's numbers of words are published as means and quantiles of a sample of 591 pictures, and
are met within some percent. Of LLaVA's 665k dialogues only the number of each kind is published;
how long a kind is follows here from how it was made (questions per picture, words per answer), and
the mean over all of them lies between 800 and 900 positions, as LLaVA's training speed tells.

Source: AstroLLaVA (arXiv 2504.08583) and its data set; LLaVA-1.5 (arXiv 2310.03744), table 7.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from astrollava_jax.data.lengths import Lengths

IMAGE_POSITIONS = 576
TOKENS_PER_WORD = 1.35
"""Of Llama's tokenizer on the words of AstroLLaVA."""

_SYSTEM = 35  # tokens of vicuna_v1 before the first human text
_PAIR = 9  # and around a question and its answer


class Corpus(NamedTuple):
    """Where a part of AstroLLaVA's captions come from."""

    pictures: int
    mean_words: float
    spread: float
    """Deviation of the logarithm; chosen so that the quantiles of all captions are met."""


CORPORA = {
    "APOD": Corpus(9_962, 141, 0.4),
    "HST": Corpus(5_204, 118, 0.3),
    "ESO": Corpus(14_617, 64, 0.8),
}
MOST_CAPTION_WORDS = 365
SHORT_CAPTION_WORDS = (18.0, 5.0)
"""Mean and deviation."""
PAIRS = {3: 15, 4: 240, 5: 336}
"""Pictures by the number of their questions."""
QUESTION_WORDS = (9.5, 3.65)
"""Mean and deviation."""
ANSWER_WORDS = (33.7, 0.325)
"""Median, and deviation of the logarithm."""
MOST_ANSWER_WORDS = 122


class DialogueKind(NamedTuple):
    """A part of LLaVA's 665k dialogues."""

    thousands: int
    median_text: int
    """Positions beside the picture's."""
    spread: float
    """Deviation of the logarithm."""
    images: int = 1


DIALOGUES = {
    "conversation": DialogueKind(58, 260, 0.35),
    "detail": DialogueKind(23, 200, 0.25),
    "reasoning": DialogueKind(77, 220, 0.30),
    "ShareGPT": DialogueKind(40, 1400, 0.80, images=0),
    "VQAv2": DialogueKind(83, 155, 0.40),
    "GQA": DialogueKind(72, 320, 0.40),
    "OKVQA": DialogueKind(9, 75, 0.15),
    "OCR-VQA": DialogueKind(80, 190, 0.25),
    "A-OKVQA": DialogueKind(66, 110, 0.15),
    "TextCaps": DialogueKind(22, 110, 0.30),
    "RefCOCO": DialogueKind(48, 350, 0.50),
    "VG": DialogueKind(86, 480, 0.35),
}

Counts = Int[np.ndarray, " n"]


def caption_words(count: int, rng: np.random.Generator) -> Counts:
    """Words of captions as AstroLLaVA's."""
    table = np.array(list(CORPORA.values()), float)
    corpora = rng.choice(len(table), p=table[:, 0] / table[:, 0].sum(), size=count)
    _, means, spreads = table[corpora].T
    words = means * np.exp(spreads * rng.standard_normal(count) - spreads**2 / 2)
    return _whole(words, 1, MOST_CAPTION_WORDS)


def short_caption_words(count: int, rng: np.random.Generator) -> Counts:
    """Words of captions as those of LLaVA's stage 1: some 24 tokens."""
    return _whole(rng.normal(*SHORT_CAPTION_WORDS, count), 5, None)


def dialogue_words(count: int, rng: np.random.Generator) -> tuple[Counts, Counts, Counts]:
    """Of dialogues as AstroLLaVA's: pairs, and the words of all questions and all answers."""
    numbers = np.array(list(PAIRS.values()))
    pairs = rng.choice(list(PAIRS), p=numbers / numbers.sum(), size=count)
    said = np.arange(max(PAIRS)) < pairs[:, None]
    questions = _whole(rng.normal(*QUESTION_WORDS, said.shape), 3, None)
    median, spread = ANSWER_WORDS
    answers = _whole(rng.lognormal(np.log(median), spread, said.shape), 1, MOST_ANSWER_WORDS)
    return pairs, (questions * said).sum(axis=1), (answers * said).sum(axis=1)


def captions(count: int, rng: np.random.Generator) -> Lengths:
    """AstroLLaVA's stage 1: <s>, the picture, its caption and a newline."""
    text = np.round(TOKENS_PER_WORD * caption_words(count, rng))
    return _lengths(text + 2 + IMAGE_POSITIONS)


def dialogues(count: int, rng: np.random.Generator) -> Lengths:
    """AstroLLaVA's stage 2: the picture and what is asked and answered about it."""
    pairs, questions, answers = dialogue_words(count, rng)
    text = np.round(TOKENS_PER_WORD * (questions + answers)) + _PAIR * pairs
    return _lengths(text + _SYSTEM + IMAGE_POSITIONS)


def astrollava(count: int, rng: np.random.Generator) -> Lengths:
    """As many captions as dialogues, as where one run learns both."""
    tokens = [captions(count, rng).tokens, dialogues(count, rng).tokens]
    return _lengths(np.where(rng.random(count) < 0.5, *tokens))


def llava_665k(count: int, rng: np.random.Generator) -> Lengths:
    """LLaVA-1.5's stage 2."""
    table = np.array(list(DIALOGUES.values()), float)
    kinds = rng.choice(len(table), p=table[:, 0] / table[:, 0].sum(), size=count)
    _, medians, spreads, images = table[kinds].T
    text = np.round(medians * np.exp(spreads * rng.standard_normal(count)))
    return _lengths(text + IMAGE_POSITIONS * images, images.astype(np.int32))


MIXES: dict[str, Callable[[int, np.random.Generator], Lengths]] = {
    "AstroLLaVA": astrollava,
    "LLaVA-665k": llava_665k,
    "AstroLLaVA, captions": captions,
    "AstroLLaVA, dialogues": dialogues,
}


def _whole(
    values: Float[np.ndarray, "*shape"], least: int, most: int | None
) -> Int[np.ndarray, "*shape"]:
    return np.round(values).clip(least, most).astype(np.int64)


def _lengths(tokens: Num[np.ndarray, " n"], images: int | Counts = 1) -> Lengths:
    whole = np.asarray(tokens).astype(np.int32)
    ones = np.ones_like(whole)
    return Lengths(tokens=whole, images=ones * images, learned=ones, whole=whole)
