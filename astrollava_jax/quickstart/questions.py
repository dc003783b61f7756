"""The examination: closed questions about a scene, and how answers and captions are read.

A text is credited with a value only if it says exactly one: `two or three` is no answer.
"""

import dataclasses
import re

from astrollava_jax.quickstart.sky import COLOURS, KINDS, SIZES, TILTS, Scene
from astrollava_jax.quickstart.words import ASKED, NOUNS, NUMBERS, told

_ONE = {"a": NUMBERS[1], "an": NUMBERS[1]}


@dataclasses.dataclass(frozen=True)
class Question:
    """One closed question; patterns have one group, which holds the word that is the value."""

    name: str
    answer_pattern: str
    caption_pattern: str

    @property
    def text(self) -> str:
        """The question in words."""
        return ASKED[self.name][0]

    def truth(self, scene: Scene) -> str | None:
        """The right answer, in one word; None where the question does not apply."""
        return told(scene).get(self.name)

    def read_answer(self, text: str) -> str | None:
        """The value that a short answer gives, or None."""
        return _only(self.answer_pattern, text)

    def read_caption(self, text: str) -> str | None:
        """The value that a description of the whole picture gives, or None."""
        return _only(self.caption_pattern, text)


def _only(pattern: str, text: str) -> str | None:
    said = {_ONE.get(word, word) for word in re.findall(pattern, text.lower())}
    return said.pop() if len(said) == 1 else None


def _word(words) -> str:
    return rf"\b({'|'.join(words)})\b"


_NUMBER = "|".join(NUMBERS.values())
_THING = "|".join(noun for kind, pair in NOUNS.items() if kind != "field" for noun in pair)
_ADJECTIVE = "|".join([*SIZES, *TILTS, *COLOURS])
# A number or an article that leads to the name of an object, over adjectives only.
_COUNTED = rf"\b(an?|{_NUMBER})(?: (?:{_ADJECTIVE}),?)* (?:{_THING})\b"
_KIND = rf"\b({'|'.join(KINDS)})s?\b"

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question("kind", answer_pattern=_KIND, caption_pattern=_KIND),
        Question(
            "arms", answer_pattern=_word(NUMBERS.values()), caption_pattern=rf"\b({_NUMBER}) arms\b"
        ),
        Question("colour", answer_pattern=_word(COLOURS), caption_pattern=_word(COLOURS)),
        Question("count", answer_pattern=_word(NUMBERS.values()), caption_pattern=_COUNTED),
    )
}
