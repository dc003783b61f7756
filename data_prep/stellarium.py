"""Makes record sets from Stellarium's nebula pictures and OpenNGC's facts.

    python -m data_prep.stellarium --textures /usr/share/stellarium/nebulae/default --out data/sky

Real pictures of real objects with short true facts: a test set for the pipeline, not for astronomy
(the survey that a picture came from gives much of its kind away). The pictures belong to many
people, whose terms differ: each record keeps its picture's credit, and says where the terms are.
"""

import argparse
import dataclasses
import functools
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from astrollava_jax import files
from astrollava_jax.data import image
from astrollava_jax.data.example import Example
from astrollava_jax.data.tfrecord import SetInfo, write_set
from data_prep import command, openngc, stellarium_words
from data_prep.openngc import SkyObject
from data_prep.parallel import ordered_map
from data_prep.split import held_out, together
from data_prep.tally import Refused, Tally

LICENSE = (
    "Picture: terms differ by contributor, see the section on graphics in Stellarium's CREDITS "
    "(in Debian, /usr/share/doc/stellarium-data/copyright) and the url. Facts: OpenNGC, "
    f"{openngc.LICENSE}."
)

_CATALOGUES = {"m": "M", "n": "NGC", "ngc": "NGC", "ic": "IC"}

LookUp = Callable[[str, int], SkyObject | None]


@dataclasses.dataclass(frozen=True)
class Texture:
    """One picture, as `textures.json` lists it."""

    name: str
    credit: str
    url: str
    corners: Float64[np.ndarray, "corners 2"]
    """Right ascension and declination, in degrees."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture and the object that it shows."""

    texture: Texture
    object: SkyObject
    field_arcmin: float
    """Mean length of the picture's sides."""


def read_textures(folder: files.Where) -> list[Texture]:
    """The pictures that a folder of Stellarium's lists, by name.

    Raises:
        FileNotFoundError: if the folder has no `textures.json`.
        ValueError: if that file cannot be read even leniently.
    """
    path = files.join(folder, "textures.json")
    if not files.exists(path):
        raise FileNotFoundError(
            f"{path}: not there; name Stellarium's folder nebulae/default, "
            "such as /usr/share/stellarium/nebulae/default"
        )
    try:
        tiles = json.loads(repair_json(files.read_text(path)))["subTiles"]
        return sorted((_texture(tile) for tile in tiles), key=lambda texture: texture.name)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a list of textures ({type(error).__name__}: {error})"
        ) from None


def repair_json(text: str) -> str:
    """Strict JSON from Stellarium's, which has numbers like `.5`, `007`, `+3`, and idle commas."""
    tokens = r'"(?:[^"\\]|\\.)*"|[+-]?[\d.]+(?:[eE][+-]?\d+)?|,(?=\s*[\]}])'
    return re.sub(tokens, _repair_token, text)


def find_object(texture: Texture, look_up: LookUp) -> Shown:
    """The object that a picture shows, by the number in its name and by its place in the sky.

    Raises:
        Refused: if the name has no catalogue number, or OpenNGC has no such object just there.
    """
    match = re.match(r"(ngc|ic|m|n)(\d+)", texture.name)
    if "/" in texture.name or "\0" in texture.name:
        raise Refused("picture's name leads out of the folder", f"{texture.name!a}")
    if not match:
        raise Refused("no catalogue number in the name", texture.name)
    found = look_up(_CATALOGUES[match[1]], int(match[2]))
    if found is None:
        raise Refused("no such object in OpenNGC that a picture can show", texture.name)
    centre, radius, side = _frame(texture.corners)
    place = _direction(np.array([found.right_ascension, found.declination]))
    if _angle(centre, place) > radius:
        raise Refused("the object lies outside the picture", f"{texture.name}: {found.key}")
    return Shown(texture, found, side * 60)


def to_example(
    shown: Shown, folder: files.Where, *, seed: int, size: int, mode: image.Mode
) -> Example:
    """The record of a picture: pixels, caption, dialogue, and whose it is.

    Raises:
        Refused: if the picture is missing or cannot be decoded.
    """
    texture = shown.texture
    try:
        encoded = image.fit(files.read_bytes(files.join(folder, texture.name)), size, mode)
    except OSError:
        raise Refused("picture missing", texture.name) from None
    except image.ImageError as error:
        raise Refused("picture cannot be decoded", f"{texture.name}: {error}") from None
    chance = random.Random(f"{seed}/{texture.name}")
    return Example(
        id=f"stellarium-{texture.name.removesuffix('.png')}",
        images=(encoded,),
        turns=stellarium_words.dialogue(shown.object, shown.field_arcmin, chance),
        caption=stellarium_words.caption(shown.object, shown.field_arcmin, chance),
        source=f"Stellarium nebulae/default/{texture.name}; OpenNGC {shown.object.key}",
        credit=texture.credit,
        license=LICENSE,
        url=texture.url,
    )


def convert(
    folder: files.Where,
    out: files.Where,
    *,
    heldout: float,
    seed: int,
    size: int,
    mode: image.Mode,
    tally: Tally,
    look_up: LookUp = openngc.look_up,
) -> list[SetInfo]:
    """Writes `out/train` and, for a fraction above 0, `out/heldout`; no object is in both.

    Both sets are written, or none.
    """
    pictures = list(_found(read_textures(folder), look_up, tally))
    kept_out = held_out((shown.object.key for shown in pictures), heldout, seed)
    sets = {
        "train": [shown for shown in pictures if shown.object.key not in kept_out],
        "heldout": [shown for shown in pictures if shown.object.key in kept_out],
    }
    make = functools.partial(_attempt, folder=folder, seed=seed, size=size, mode=mode)
    return together(
        write_set(
            files.join(out, split),
            _taken(ordered_map(make, chosen), split, tally),
            name="stellarium",
            split=split,
            description="Stellarium's pictures of nebulae and galaxies, with facts of OpenNGC.",
        )
        for split, chosen in sets.items()
        if chosen
    )


def _repair_token(match: re.Match[str]) -> str:
    token = match.group()
    if token.startswith('"'):
        return token
    return "" if token == "," else repr(float(token))


def _texture(tile: dict[str, Any]) -> Texture:
    credits = {key.lower(): value for key, value in tile.get("imageCredits", {}).items()}
    return Texture(
        name=tile["imageUrl"],
        credit=credits.get("short", ""),
        url=credits.get("infourl", ""),
        corners=np.array(tile["worldCoords"][0], np.float64),
    )


def _frame(
    corners: Float64[np.ndarray, "corners 2"],
) -> tuple[Float64[np.ndarray, "3"], float, float]:
    """The picture's middle, and in degrees its farthest corner from there and its mean side."""
    directions = np.stack([_direction(corner) for corner in corners])
    middle = directions.mean(axis=0)
    middle /= np.linalg.norm(middle)
    sides = [_angle(*pair) for pair in zip(directions, np.roll(directions, 1, axis=0))]
    radius = max(_angle(middle, direction) for direction in directions)
    return middle, radius, sum(sides) / len(sides)


def _direction(place: Float64[np.ndarray, "2"]) -> Float64[np.ndarray, "3"]:
    """The unit vector of a right ascension and declination in degrees."""
    right_ascension, declination = np.radians(place)
    return np.array(
        [
            math.cos(declination) * math.cos(right_ascension),
            math.cos(declination) * math.sin(right_ascension),
            math.sin(declination),
        ]
    )


def _angle(one: Float64[np.ndarray, "3"], other: Float64[np.ndarray, "3"]) -> float:
    """Degrees between two directions."""
    return math.degrees(math.atan2(np.linalg.norm(np.cross(one, other)), float(one @ other)))


def _found(textures: list[Texture], look_up: LookUp, tally: Tally) -> Iterator[Shown]:
    for texture in textures:
        tally.count("pictures listed")
        try:
            yield find_object(texture, look_up)
        except Refused as refused:
            tally.refuse(refused)


def _attempt(shown: Shown, **options: Any) -> Example | Refused:
    try:
        return to_example(shown, **options)
    except Refused as refused:
        return refused


def _taken(results: Iterator[Example | Refused], split: str, tally: Tally) -> Iterator[Example]:
    for result in results:
        if isinstance(result, Refused):
            tally.refuse(result)
        else:
            tally.count(f"written to {split}")
            yield result


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.stellarium",
        description="Make record sets from Stellarium's pictures and OpenNGC's facts.",
    )
    add = parser.add_argument
    add("--textures", required=True, metavar="DIR", help="Stellarium's folder nebulae/default")
    add("--out", required=True, metavar="DIR", help="sets are written to DIR/train, DIR/heldout")
    add("--heldout", type=float, default=0.1, help="share of the objects held out (default: 0.1)")
    add("--seed", type=int, default=0, help="of words and of the split (default: 0)")
    add("--size", type=int, default=336, help="pixels to store a side at (default: 336)")
    command.add_image_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when records were written, 2 for a mistake of the user's."""
    arguments = _arguments(argv)
    return command.run(
        "stellarium",
        lambda tally: convert(
            arguments.textures,
            arguments.out,
            heldout=arguments.heldout,
            seed=arguments.seed,
            size=arguments.size,
            mode=arguments.image,
            tally=tally,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
