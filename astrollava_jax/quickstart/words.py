"""What is said about a scene: captions and dialogues in varied, lower-case words.

All wordings are tables, so that the vocabulary can be read off them. What is asked of every picture
is worded alike for one object and for several: a question must not give its answer away.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from astrollava_jax.data.example import Turn
from astrollava_jax.quickstart.sky import COLOURS, SIZES, TILTS, Kind, Position, Purpose, Scene

NOUNS: dict[Kind, tuple[str, str]] = {  # one, several
    "spiral": ("spiral galaxy", "spiral galaxies"),
    "elliptical": ("elliptical galaxy", "elliptical galaxies"),
    "edge-on": ("edge-on galaxy", "edge-on galaxies"),
    "merging": ("merging galaxy", "merging galaxies"),
    "cluster": ("star cluster", "star clusters"),
    "planetary": ("planetary nebula", "planetary nebulae"),
    "ring": ("ring galaxy", "ring galaxies"),
    "field": ("star field", "star fields"),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLACES: dict[Position, tuple[str, ...]] = {
    "middle": ("in the middle", "in the middle of the picture"),
    "left": ("at the left", "on the left side"),
    "right": ("at the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
}

_OPENINGS = (  # of one, of several
    ("this is", "these are"),
    ("here is", "here are"),
    ("we see", "we see"),
    ("the picture shows", "the picture shows"),
)
_CAPTIONS = (
    "{opening} {article} {adjectives} {noun}{with_arms}{place}.",
    "{opening} {article} {adjectives} {noun}{place}{aside_arms}.",
    "{article} {adjectives} {noun}{with_arms}{place}.",
    "{opening} {plain_article} {noun}{place}. {subject} {listed}{and_arms}.",
    "{opening} {plain_article} {noun}{with_arms}. {subject} {listed}{and_place}.",
)
_WITH_ARMS = (" with {arms} arms", " that has {arms} arms")
_ASIDE_ARMS = ", with {arms} arms"
_AND_ARMS = " and has {arms} arms"
_AND_PLACE = {False: " and lies {place}", True: " and lie {place}"}
_SUBJECTS = {False: "it is", True: "they are"}
_FIELD_SUBJECT = "all its stars are"
_LINK = " and "
_ARTICLES = {False: "a", True: "an"}  # before a vowel?

# Wordings of each question; the first is the one that an examiner asks.
ASKED: dict[str, tuple[str, ...]] = {
    "kind": (
        "what kind of object is shown?",
        "what is this?",
        "what type of object do you see?",
        "name the kind of object.",
    ),
    "arms": (
        "how many arms are there?",
        "how many arms does the galaxy have?",
        "how many spiral arms do you see?",
        "count the arms.",
    ),
    "colour": (
        "what is the colour?",
        "what colour do you see?",
        "which color is shown?",  # some users will spell it so
        "name the colour.",
    ),
    "count": (
        "how many objects are there?",
        "how many objects do you see?",
        "how many objects does the picture show?",
        "count the objects.",
    ),
    "position": (
        "where is it?",
        "where does the object lie?",
        "in which part of the picture is it?",
    ),
    "size": ("how large is it?", "is it small or large?", "what is its size?"),
    "tilt": ("how does it lie?", "is it flat, tilted or upright?"),
    "caption": (
        "describe the picture.",
        "describe this image.",
        "what does the picture show?",
        "what do you see in this image?",
    ),
}
# Wordings of each answer, about one object and about several.
_ANSWERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "kind": (
        ("{value}.", "this is {value}.", "it is {value}."),
        ("{value}.", "these are {value}.", "they are {value}."),
    ),
    "arms": (("{value}.", "{value} arms.", "it has {value} arms."), ()),
    "colour": (
        ("{value}.", "it is {value}.", "the colour is {value}."),
        ("{value}.", "they are {value}.", "the colour is {value}."),
    ),
    "count": (
        ("{value}.", "there is {value}.", "just {value}."),
        ("{value}.", "there are {value}.", "i see {value}."),
    ),
    "position": (("{value}.", "it is {value}.", "it lies {value}."),) * 2,
    "size": (
        ("{value}.", "it is {value}.", "its size is {value}."),
        ("{value}.", "they are {value}."),
    ),
    "tilt": (("{value}.", "it is {value}."), ()),
    "caption": (("{value}",),) * 2,
}
_TURNS = 4  # questions of a dialogue, where so many apply
_DESCRIBED = 0.25  # share of dialogues that begin with a description


def caption(scene: Scene) -> str:
    """One or two sentences that say all that is to be told about a scene."""
    return _caption(scene, scene.generator(Purpose.CAPTION))


def dialogue(scene: Scene) -> tuple[Turn, ...]:
    """Questions about a scene in any order, each with its answer."""
    random = scene.generator(Purpose.DIALOGUE)
    turns = []
    for topic in _topics(scene, random):
        turns.append(Turn("human", _any(random, ASKED[topic])))
        turns.append(Turn("assistant", _answer(scene, topic, random)))
    return tuple(turns)


def told(scene: Scene) -> dict[str, str]:
    """The words for what is to be told about a scene in short answers, by topic."""
    values = {
        "kind": scene.kind,
        "arms": NUMBERS.get(scene.arms or 0),
        "colour": scene.colour,
        "count": NUMBERS.get(scene.count or 0),
        "position": scene.position,
        "size": scene.size,
        "tilt": scene.tilt,
    }
    return {topic: value for topic, value in values.items() if value}


def lexicon() -> list[str]:
    """Every word that can be said about any scene, sorted."""
    tables = (NOUNS, NUMBERS, PLACES, _ARTICLES, _OPENINGS, _CAPTIONS, _WITH_ARMS, _ASIDE_ARMS)
    tables += (_AND_ARMS, _AND_PLACE, _SUBJECTS, _FIELD_SUBJECT, _LINK, ASKED, _ANSWERS)
    texts = [*_texts(tables), *COLOURS, *SIZES, *TILTS]
    return sorted(set(re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"{\w+}", "", " ".join(texts)))))


def _caption(scene: Scene, random: np.random.Generator) -> str:
    several = (scene.count or 1) > 1
    noun = NOUNS[scene.kind][several]
    adjectives = [word for word in (scene.size, scene.tilt, scene.colour) if word]
    place = _any(random, PLACES[scene.position]) if scene.position else ""
    arms = told(scene).get("arms")
    return _any(random, _CAPTIONS).format(
        opening=_any(random, _OPENINGS)[several],
        article=_article(scene, adjectives[0]),
        plain_article=_article(scene, noun),
        adjectives=" ".join(adjectives),
        noun=noun,
        with_arms=_any(random, _WITH_ARMS).format(arms=arms) if arms else "",
        aside_arms=_ASIDE_ARMS.format(arms=arms) if arms else "",
        and_arms=_AND_ARMS.format(arms=arms) if arms else "",
        place=f" {place}" if place else "",
        and_place=_AND_PLACE[several].format(place=place) if place else "",
        subject=_FIELD_SUBJECT if scene.kind == "field" else _SUBJECTS[several],
        listed=_listed(adjectives),
    )


def _topics(scene: Scene, random: np.random.Generator) -> list[str]:
    """What to ask about: arms, the hardest, wherever they can be told; the rest by chance."""
    topics = [str(topic) for topic in random.permutation(list(told(scene)))]
    topics.sort(key=lambda topic: topic != "arms")
    described = random.random() < _DESCRIBED
    topics = [str(topic) for topic in random.permutation(topics[: _TURNS - 2 * described])]
    return ["caption", *topics] if described else topics


def _answer(scene: Scene, topic: str, random: np.random.Generator) -> str:
    several = (scene.count or 1) > 1
    if topic == "caption":
        value = _caption(scene, random)
    elif topic == "position":
        assert scene.position, "only a place that is told is asked for"
        value = _any(random, PLACES[scene.position])
    elif topic == "kind":
        noun = NOUNS[scene.kind][several]
        value = noun if several else f"{_article(scene, noun)} {noun}"
    else:
        value = told(scene)[topic]
    return _any(random, _ANSWERS[topic][several]).format(value=value)


def _article(scene: Scene, following: str) -> str:
    """The number of objects, or the article that suits the word that follows."""
    if (scene.count or 1) > 1:
        return told(scene)["count"]
    return _ARTICLES[following[0] in "aeiou"]


def _listed(adjectives: list[str]) -> str:
    """`large`, `large and red`, `large, tilted and red`."""
    *first, last = adjectives
    return f"{', '.join(first)}{_LINK}{last}" if first else last


def _any(random: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(random.integers(len(choices)))]


def _texts(table) -> Iterator[str]:
    """The strings at the leaves of nested mappings and tuples."""
    if isinstance(table, str):
        yield table
    else:
        for item in table.values() if isinstance(table, dict) else table:
            yield from _texts(item)
