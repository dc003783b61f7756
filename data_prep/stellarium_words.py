"""Says the facts of a sky object in varied words: a caption, and a dialogue of a few turns.

Every sentence states what OpenNGC or the picture's frame states, and nothing else. The choice of
words depends only on the random generator that is handed in.
"""

import random

from astrollava_jax.data.example import Turn
from data_prep.openngc import SkyObject

_MAX_QUESTIONS = 4  # after the first
_LEAST_VELOCITY = 10  # km/s; catalogues do not agree on the sign of less

_FIRST = (
    "What kind of object is this?",
    "What does this picture show?",
    "What are we looking at?",
    "Can you tell me what this is?",
)

_NAME = (
    ("Does it have a name?", "What is it called?", "Which object is it?"),
    ("It is {names}.", "This is {names}.", "It is listed as {names}."),
)
_CONSTELLATION = (
    ("In which constellation does it lie?", "Where in the sky is it?", "Where can I find it?"),
    (
        "It lies in the constellation {constellation}.",
        "You can find it in {constellation}.",
        "It is in {constellation}.",
    ),
)
_MAGNITUDE = (
    ("How bright is it?", "What is its magnitude?", "What is its visual brightness?"),
    (
        "Its visual magnitude is {magnitude}.",
        "It shines at visual magnitude {magnitude}.",
        "It has a visual magnitude of {magnitude}.",
    ),
)
_SIZE = (
    ("How large does it appear?", "What is its apparent size?", "How big is it in the sky?"),
    (
        "It spans about {size} in the sky.",
        "Its apparent size is about {size}.",
        "It measures about {size}.",
    ),
)
_HUBBLE = (
    ("What is its Hubble type?", "How is it classified?", "What is its morphological type?"),
    (
        "Its Hubble type is {hubble}.",
        "It is classified as type {hubble}.",
        "It belongs to Hubble type {hubble}.",
    ),
)
_VELOCITY = (
    ("Is it moving towards us or away?", "How fast does it move along our line of sight?"),
    ("It is {motion} at about {speed} kilometres per second.",),
)
_FIELD = (
    ("How wide is the field of view?", "How much of the sky does the picture cover?"),
    (
        "The picture is about {field} wide.",
        "The field of view is about {field} across.",
        "The picture covers a field about {field} wide.",
    ),
)

_CAPTIONS = (
    "{Named} is {a_kind} in the constellation {constellation}.",
    "{A_kind} in the constellation {constellation}: {names}.",
    "This picture shows {names}, {a_kind} in {constellation}.",
    "{A_kind} in {constellation}, known as {names}.",
)


def caption(shown: SkyObject, field_arcmin: float, chance: random.Random) -> str:
    """One sentence that names the object, and up to two more facts."""
    facts = _facts(shown, field_arcmin)
    told = (_NAME, _CONSTELLATION)
    more = [answers for _, answers in (asked for asked in _further(shown) if asked not in told)]
    chosen = chance.sample(more, min(2, len(more)))
    chosen.sort(key=_FIELD[1].__eq__)  # last, or the next "it" would be the picture
    sentences = [chance.choice(answers) for answers in (_CAPTIONS, *chosen)]
    return " ".join(sentence.format_map(facts) for sentence in sentences)


def dialogue(shown: SkyObject, field_arcmin: float, chance: random.Random) -> tuple[Turn, ...]:
    """What kind of object it is, then up to four other questions in any order."""
    facts = _facts(shown, field_arcmin)
    first = ("It is {a_kind}.", "This is {a_kind}.", "The picture shows {a_kind}.")
    further = _further(shown)
    count = chance.randint(min(2, len(further)), min(_MAX_QUESTIONS, len(further)))
    turns: list[Turn] = []
    for questions, answers in [(_FIRST, first), *chance.sample(further, count)]:
        turns.append(Turn("human", chance.choice(questions)))
        turns.append(Turn("assistant", chance.choice(answers).format_map(facts)))
    return tuple(turns)


def _further(shown: SkyObject) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The questions that this object has an answer to."""
    optional = [
        (_MAGNITUDE, shown.magnitude is not None),
        (_SIZE, bool(shown.size_arcmin)),
        (_HUBBLE, bool(shown.hubble)),
        (_VELOCITY, abs(shown.velocity or 0) >= _LEAST_VELOCITY),
    ]
    return [_NAME, _CONSTELLATION, _FIELD, *(asked for asked, known in optional if known)]


def _facts(shown: SkyObject, field_arcmin: float) -> dict[str, str]:
    names = [shown.designation, shown.common_name]
    also = f" ({shown.also})" if shown.also else ""
    a_kind = f"{_article(shown.kind)} {shown.kind}"
    velocity = shown.velocity or 0
    return {
        "names": ", ".join(name for name in names if name) + also,
        "Named": f"{shown.designation}{also}" + (shown.common_name and f", {shown.common_name},"),
        "a_kind": a_kind,
        "A_kind": a_kind[0].upper() + a_kind[1:],
        "constellation": shown.constellation,
        "hubble": shown.hubble,
        "magnitude": f"{shown.magnitude:.1f}" if shown.magnitude is not None else "",
        "size": _angles(shown.size_arcmin),
        "field": _angles((field_arcmin,)),
        "motion": "moving away from us" if velocity > 0 else "approaching us",
        "speed": f"{abs(velocity):,}",
    }


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _angles(arcmin: tuple[float, ...]) -> str:
    """One or two angles in the unit that suits the longer: `13.7 by 11.7 arcminutes`."""
    if not arcmin:
        return ""
    units: list[tuple[float, float, str]] = [
        (60.0, 1 / 60, "degrees"),
        (1.0, 1.0, "arcminutes"),
        (0.0, 60.0, "arcseconds"),
    ]
    scale, unit = next((scale, unit) for least, scale, unit in units if arcmin[0] >= least)
    texts = list(dict.fromkeys(_number(side * scale) for side in arcmin))
    return f"{' by '.join(texts)} {unit.removesuffix('s') if texts == ['1'] else unit}"


def _number(value: float) -> str:
    """Two digits that matter, three from ten on: `1.3`, `13.7`, `178`."""
    text = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return text.removesuffix(".0")
