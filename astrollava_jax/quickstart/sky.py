"""The simulated sky: what each picture holds, drawn from a seed and an index.

Lengths are fractions of the picture's side and angles are radians, so that a scene can be drawn at
any size. What words may say (kind, colour, count, arms, size, position, tilt) is chosen first, in
well separated classes; the exact figures are then drawn within the class.
"""

import dataclasses
import enum
import math
from typing import Literal

import numpy as np

Kind = Literal[
    "spiral", "elliptical", "edge-on", "merging", "cluster", "planetary", "ring", "field"
]
Colour = Literal["red", "yellow", "green", "blue", "white"]
Size = Literal["small", "large"]
Position = Literal["middle", "left", "right", "top", "bottom"]
Tilt = Literal["flat", "upright", "tilted"]


class Purpose(enum.IntEnum):
    """What a scene's further randomness is for; each purpose has a source of its own."""

    DETAILS = 1
    NOISE = 2
    CAPTION = 3
    DIALOGUE = 4


@dataclasses.dataclass(frozen=True)
class KindFacts:
    """How often a kind of picture is drawn, and of how many bodies with which shape."""

    share: float  # of all pictures
    bodies: tuple[float, ...]  # probabilities of 1, 2, 3 bodies; empty: the stars fill the picture
    axis_ratio: tuple[float, float] = (1.0, 1.0)  # short axis / long axis, lowest and highest
    objects_per_body: int = 1
    tilt_is_told: bool = False


# Arms are learned only from pictures of one spiral, so spirals are frequent and mostly alone.
_SELDOM_ALONE = (0.58, 0.21, 0.21)
KINDS: dict[Kind, KindFacts] = {
    "spiral": KindFacts(0.31, bodies=(0.75, 0.15, 0.10), axis_ratio=(0.85, 1.0)),
    "elliptical": KindFacts(0.10, bodies=_SELDOM_ALONE, axis_ratio=(0.55, 0.85)),
    "edge-on": KindFacts(0.10, bodies=_SELDOM_ALONE, tilt_is_told=True),
    "merging": KindFacts(0.10, bodies=(1.0,), objects_per_body=2),
    "cluster": KindFacts(0.10, bodies=_SELDOM_ALONE, axis_ratio=(0.85, 1.0)),
    "planetary": KindFacts(0.10, bodies=_SELDOM_ALONE, axis_ratio=(0.8, 1.0)),
    "ring": KindFacts(0.10, bodies=_SELDOM_ALONE, axis_ratio=(0.65, 1.0)),
    "field": KindFacts(0.09, bodies=()),
}
COLOURS: dict[Colour, tuple[float, float, float]] = {  # red, green and blue light
    "red": (1.0, 0.28, 0.20),
    "yellow": (1.0, 0.85, 0.22),
    "green": (0.30, 1.0, 0.35),
    "blue": (0.25, 0.50, 1.0),
    "white": (0.95, 0.95, 0.95),
}
COLOUR_SPREAD = 0.1  # each channel varies by up to this fraction
ARM_SHARES = {2: 0.42, 3: 0.33, 4: 0.25}

# The radius of one body alone, by the word for its size, and of each of two or three.
SIZES: dict[Size, tuple[float, float]] = {"small": (0.27, 0.31), "large": (0.38, 0.42)}
RADII: dict[int, tuple[float, float]] = {2: (0.18, 0.22), 3: (0.16, 0.19)}
# Distance of two or three bodies from the middle; wide enough that they do not overlap.
DISTANCES: dict[int, tuple[float, float]] = {2: (0.24, 0.28), 3: (0.27, 0.30)}
# Where one body alone stands: the direction of its offset (right and down are positive).
POSITIONS: dict[Position, tuple[int, int]] = {
    "middle": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
OFFSET = (0.11, 0.15)
WANDER = 0.02  # how far a body strays from its place, at most, along each side
# The angle of the long axis from the horizontal; a quarter turn is upright.
TILTS: dict[Tilt, tuple[float, float]] = {
    "flat": (-0.15, 0.15),
    "upright": (math.pi / 2 - 0.15, math.pi / 2 + 0.15),
    "tilted": (math.pi / 6, math.pi / 3),
}
POINT_SPREAD = (0.6, 0.8)  # sigma in pixels of a 64-pixel picture
NOISE = (0.008, 0.02)  # sigma of the background, where 1 is the brightness of a galaxy's heart
MAX_FOREGROUND_STARS = 4


@dataclasses.dataclass(frozen=True)
class Body:
    """One thing that shines: its place (from the middle), size, turn and shape."""

    x: float
    y: float
    radius: float
    angle: float
    axis_ratio: float
    handed: int  # +1 or -1: which way arms and tails wind
    variety: float  # in [0, 1): moves a galaxy's profile, a pitch angle, a number of stars
    arms: int  # of a spiral; 0 for every other kind


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that one picture shows. `None` stands where nothing is to be told."""

    seed: int
    index: int
    kind: Kind
    colour: Colour
    tint: tuple[float, float, float]
    bodies: tuple[Body, ...]
    size: Size | None
    position: Position | None
    tilt: Tilt | None
    foreground_stars: int
    point_spread: float
    noise: float

    @property
    def count(self) -> int | None:
        """How many objects there are; None where stars fill the picture."""
        return len(self.bodies) * KINDS[self.kind].objects_per_body or None

    @property
    def arms(self) -> int | None:
        """The number of spiral arms of a spiral that stands alone."""
        return self.bodies[0].arms or None if len(self.bodies) == 1 else None

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """A fresh source of randomness for one purpose, the same whenever it is asked for."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, self.index, int(purpose))))


def scene(seed: int, index: int) -> Scene:
    """The scene `index` of the sky `seed`; independent of every other index.

    Raises:
        ValueError: if one of the two is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, found seed {seed}, index {index}")
    random = np.random.default_rng(np.random.SeedSequence((seed, index)))
    kind = _choose(random, {name: facts.share for name, facts in KINDS.items()})
    facts = KINDS[kind]
    number = _choose(random, dict(enumerate(facts.bodies, start=1))) if facts.bodies else 0
    alone = number == 1
    size = _choose(random, dict.fromkeys(SIZES, 1)) if alone else None
    position = _choose(random, dict.fromkeys(POSITIONS, 1)) if alone else None
    tilt = _choose(random, dict.fromkeys(TILTS, 1)) if alone and facts.tilt_is_told else None
    colour = _choose(random, dict.fromkeys(COLOURS, 1))
    return Scene(
        seed=seed,
        index=index,
        kind=kind,
        colour=colour,
        tint=_tint(random, colour),
        bodies=_bodies(random, kind, number, size, position, tilt),
        size=size,
        position=position,
        tilt=tilt,
        foreground_stars=int(random.integers(MAX_FOREGROUND_STARS + 1)),
        point_spread=float(random.uniform(*POINT_SPREAD)),
        noise=float(random.uniform(*NOISE)),
    )


def _choose(random: np.random.Generator, weights: dict):
    """One key of `weights`, with a probability in proportion to its weight."""
    bounds = np.cumsum(list(weights.values()))
    place = np.searchsorted(bounds, random.random() * bounds[-1], side="right")
    return list(weights)[min(int(place), len(weights) - 1)]


def _tint(random: np.random.Generator, colour: Colour) -> tuple[float, float, float]:
    red, green, blue = COLOURS[colour] * random.uniform(1 - COLOUR_SPREAD, 1 + COLOUR_SPREAD, 3)
    return float(red), float(green), float(blue)


def _bodies(
    random: np.random.Generator,
    kind: Kind,
    number: int,
    size: Size | None,
    position: Position | None,
    tilt: Tilt | None,
) -> tuple[Body, ...]:
    places = _places(random, number, position)
    return tuple(
        Body(
            x=x,
            y=y,
            radius=float(random.uniform(*(SIZES[size] if size else RADII[number]))),
            angle=_angle(random, tilt),
            axis_ratio=float(random.uniform(*KINDS[kind].axis_ratio)),
            handed=_choose(random, {-1: 1, 1: 1}),
            variety=float(random.random()),
            arms=_choose(random, ARM_SHARES) if kind == "spiral" else 0,
        )
        for x, y in places
    )


def _places(
    random: np.random.Generator, number: int, position: Position | None
) -> list[tuple[float, float]]:
    """One place as its word says, or several spread around the middle."""
    if position:
        right, down = POSITIONS[position]
        distance = random.uniform(*OFFSET)
        anchors = [(right * distance, down * distance)]
    else:
        turn = random.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * place / number for place in range(number)]
        distances = [random.uniform(*DISTANCES[number]) for _ in angles]
        anchors = [(d * math.cos(a), d * math.sin(a)) for d, a in zip(distances, angles)]
    return [
        (float(x + random.uniform(-WANDER, WANDER)), float(y + random.uniform(-WANDER, WANDER)))
        for x, y in anchors
    ]


def _angle(random: np.random.Generator, tilt: Tilt | None) -> float:
    if tilt is None:
        return float(random.uniform(0, 2 * math.pi))
    side = _choose(random, {-1: 1, 1: 1})
    return side * float(random.uniform(*TILTS[tilt]))
