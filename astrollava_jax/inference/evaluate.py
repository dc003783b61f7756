"""Closed questions about pictures: how many answers are right, how surely, and beside what.

Two figures stand beside every accuracy: `blind`, the same questions with the pictures shuffled, is
what is known without looking; `majority` is what one always gets with the most frequent answer.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Value = str | None
Reader = Callable[[str], Value]
Answerer = Callable[[list[Any], list[str]], list[str]]
"""Pictures and prompts, one of each per answer: `Model.generate` with its options bound."""

NORMAL_95 = 1.959963984540054
"""The normal deviate that 95% of a distribution lie within."""

HEADER = ("question", "right", "of", "accuracy", "95% interval", "blind", "majority")


@dataclasses.dataclass(frozen=True)
class Question:
    """One closed question about one picture."""

    name: str
    """Groups the questions whose answers are counted together: `arms`."""
    prompt: str
    truth: str
    reader: Reader
    """The value that an answer gives, None where it gives none."""

    def right(self, answer: str) -> bool:
        """Whether the answer gives the truth, for a page that shows it."""
        return self.reader(answer) == self.truth


@dataclasses.dataclass(frozen=True)
class ClosedResult:
    """What came of all questions of one name; shares lie in [0, 1]."""

    name: str
    correct: int
    count: int
    low: float
    """Ends of the 95% interval of the accuracy (Wilson's)."""
    high: float
    blind: float | None
    """None where it was not asked for."""
    majority: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.count

    def row(self) -> tuple[str, ...]:
        """The result as the cells of a table under `HEADER`."""
        interval = f"{self.low:.3f} to {self.high:.3f}"
        blind = "-" if self.blind is None else f"{self.blind:.3f}"
        shares = (f"{self.accuracy:.3f}", interval, blind, f"{self.majority:.3f}")
        return (self.name, str(self.correct), str(self.count), *shares)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results by name of question, and every answer: one list per picture, as asked."""

    results: list[ClosedResult]
    answers: list[list[str]]


def evaluate(
    answer: Answerer,
    images: Sequence[Any],
    questions: Sequence[Sequence[Question]],
    *,
    shuffle_seed: int | None = 0,
) -> Evaluation:
    """Asks all questions, then asks them again with the pictures shuffled.

    Args:
        answer: the model.
        images: the pictures.
        questions: those about each picture. A prompt that several of them share (a caption from
            which all is read) is answered once.
        shuffle_seed: which shuffle; None leaves the blind figure out.

    Raises:
        ValueError: if there is not one list of questions per picture, or nothing to ask.
    """
    if len(images) != len(questions):
        raise ValueError(
            f"expected one list of questions per picture, found {len(questions)} for {len(images)}"
        )
    if not any(questions):
        raise ValueError("expected at least one question, found none")
    answers = ask_all(answer, images, questions)
    values, blind = _read(questions, answers), {}
    if shuffle_seed is not None:
        shown = [images[number] for number in derangement(len(images), shuffle_seed)]
        blind = _read(questions, ask_all(answer, shown, questions))
    truths: dict[str, list[str]] = {}
    for question in itertools.chain.from_iterable(questions):
        truths.setdefault(question.name, []).append(question.truth)
    results = [
        closed_result(name, true, values[name], blind.get(name)) for name, true in truths.items()
    ]
    return Evaluation(results, answers)


def ask_all(
    answer: Answerer, images: Sequence[Any], questions: Sequence[Sequence[Question]]
) -> list[list[str]]:
    """The answer to every question; equal prompts about one picture are answered once."""
    asked = list(
        dict.fromkeys(
            (number, question.prompt)
            for number, about in enumerate(questions)
            for question in about
        )
    )
    said = answer([images[number] for number, _ in asked], [prompt for _, prompt in asked])
    found = dict(zip(asked, said, strict=True))
    return [
        [found[number, question.prompt] for question in about]
        for number, about in enumerate(questions)
    ]


def closed_result(
    name: str,
    truths: Sequence[str],
    values: Sequence[Value],
    blind_values: Sequence[Value] | None = None,
) -> ClosedResult:
    """What came of questions with these truths, where these values were read from the answers."""
    count = len(truths)
    correct = sum(value == truth for value, truth in zip(values, truths, strict=True))
    low, high = wilson_interval(correct, count)
    most_frequent = Counter(truths).most_common(1)[0][0]
    return ClosedResult(
        name=name,
        correct=correct,
        count=count,
        low=low,
        high=high,
        blind=None if blind_values is None else accuracy(blind_values, truths),
        majority=accuracy([most_frequent] * count, truths),
    )


def accuracy(answers: Sequence[Value], truths: Sequence[Value]) -> float:
    """The share of answers, read as values, that equal the truth.

    Raises:
        ValueError: if there is not one answer per truth, or none at all.
    """
    if len(answers) != len(truths) or not truths:
        raise ValueError(
            f"expected one answer per truth, and some; found {len(answers)} and {len(truths)}"
        )
    return sum(given == truth for given, truth in zip(answers, truths)) / len(truths)


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `correct` of `count` were seen.

    Source: E. B. Wilson, Probable inference (1927); unlike the normal one it never leaves [0, 1]
    and is not empty at its ends.
    """
    share, z2 = correct / count, NORMAL_95**2 / count
    middle = share + z2 / 2
    spread = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    low, high = (middle - spread) / (1 + z2), (middle + spread) / (1 + z2)
    return max(0.0, low), min(1.0, high)


def derangement(count: int, seed: int) -> list[int]:
    """A shuffle of 0 ... count - 1 that leaves nothing in its place: one random cycle.

    Raises:
        ValueError: if there are fewer than two things.
    """
    if count < 2:
        raise ValueError(f"at least two pictures are needed to shuffle them, found {count}")
    cycle = np.random.default_rng(seed).permutation(count)
    shown = np.empty(count, int)
    shown[cycle] = np.roll(cycle, 1)
    return shown.tolist()


def table(results: Iterable[ClosedResult]) -> str:
    """The results as plain text in aligned columns."""
    rows = [HEADER, *(result.row() for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    )
    return "\n".join(lines)


def _read(
    questions: Sequence[Sequence[Question]], answers: Sequence[Sequence[str]]
) -> dict[str, list[Value]]:
    """What the answers give, by name of question, picture by picture."""
    values: dict[str, list[Value]] = {}
    for about, given in zip(questions, answers, strict=True):
        for question, text in zip(about, given, strict=True):
            values.setdefault(question.name, []).append(question.reader(text))
    return values
