"""Turns LLaVA JSON, a list of samples, and the folder of their images into record sets.

    python -m data_prep.llava_json --json chat.json --images images/ --out data/mine --heldout 0.02

    [{"id": "7", "image": "sky/7.jpg", "conversations": [
        {"from": "human", "value": "<image> What is this?"},
        {"from": "gpt", "value": "A nebula."}]}]

A sample without `image` is text only; a list of images is several images. `caption`, `source`,
`credit`, `license` and `url` are kept where they are texts; other keys are ignored. What cannot be
taken is counted and named.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from astrollava_jax import files
from astrollava_jax.data import image
from astrollava_jax.data.example import IMAGE_MARKER, Example, Role, Turn
from astrollava_jax.data.tfrecord import SetInfo, write_set
from data_prep import command
from data_prep.parallel import ordered_map
from data_prep.split import held_out
from data_prep.tally import Refused, Tally

ROLES: dict[str, Role] = {"human": "human", "gpt": "assistant", "astrollava": "assistant"}
KEPT_TEXTS = ("caption", "source", "credit", "license", "url")

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Where a sample's pictures are, and how they are stored."""

    folder: str
    size: int
    """Pixels of the longer (`pad`) or shorter (`crop`) side; 0 keeps every picture's own."""
    mode: image.Mode
    by_id: bool
    """Whether a sample without `image` has its picture in `<id>.jpg`."""

    def of(self, sample: Sample) -> list[str]:
        """The names of a sample's pictures, in order."""
        named = sample.get("image")
        if named is None or named == "":
            return [f"{sample.get('id')}.jpg"] if self.by_id else []
        names = named if isinstance(named, list) else [named]
        if not all(isinstance(name, str) for name in names):
            raise Refused("image is neither a path nor a list of paths", str(sample.get("id")))
        return names

    def load(self, name: str, sample_id: str) -> bytes:
        """One picture as records keep it."""
        path = files.join(self.folder, name)
        try:
            encoded = files.read_bytes(path)
        except OSError:
            raise Refused("image file missing", f"{sample_id}: {path}") from None
        try:
            return image.fit(encoded, self.size or image.MAX_PIXELS, self.mode)
        except image.ImageError as error:
            raise Refused("image cannot be decoded", f"{sample_id}: {path}: {error}") from None


def convert(
    samples: Sequence[Any],
    out: files.Where,
    *,
    pictures: Pictures,
    name: str,
    split: str,
    heldout: float,
    tally: Tally,
) -> list[SetInfo]:
    """Writes the samples as sets `out/SPLIT` and, for a fraction above 0, `out/heldout`.

    All samples of one image go to the same set.
    """
    if not files.is_folder(pictures.folder):
        raise FileNotFoundError(f"{pictures.folder}: expected the folder of the images, found none")
    groups = [_group(sample, number, pictures) for number, sample in enumerate(samples)]
    kept_out = held_out(groups, heldout)
    numbers = {split: [n for n, group in enumerate(groups) if group not in kept_out]}
    if kept_out:
        numbers["heldout"] = [n for n, group in enumerate(groups) if group in kept_out]
    for part in numbers:
        if files.exists(files.join(out, part)):
            raise FileExistsError(f"{files.join(out, part)} exists: choose another --out")
    return [
        write_set(
            files.join(out, part),
            _examples(samples, chosen, pictures, f"to {part}", tally),
            name=name,
            split=part,
        )
        for part, chosen in numbers.items()
    ]


def to_example(sample: Any, number: int, pictures: Pictures) -> tuple[Example, list[str]]:
    """The sample as a record, and what had to be changed to make it one.

    Raises:
        Refused: if it cannot be one; says why.
    """
    if not isinstance(sample, dict):
        raise Refused("not an object with keys", f"sample {number} is a {type(sample).__name__}")
    sample_id = _id(sample, number)
    texts = {key: sample[key] for key in KEPT_TEXTS if isinstance(sample.get(key), str)}
    turns, changes = _turns(sample, sample_id)
    if not texts.get("caption") and not any(turn.role == "assistant" for turn in turns):
        raise Refused("no answer and no caption to learn", sample_id)
    names = pictures.of(sample)
    _check_markers(turns, len(names), sample_id)
    images = tuple(pictures.load(name, sample_id) for name in names)
    return Example(id=sample_id, images=images, turns=turns, **texts), changes


def _examples(
    samples: Sequence[Any], numbers: list[int], pictures: Pictures, kind: str, tally: Tally
) -> Iterator[Example]:
    console = Console(stderr=True)
    shown = track(numbers, kind, console=console, disable=not console.is_terminal)
    attempt = functools.partial(_attempt, samples, pictures)
    for result in ordered_map(attempt, shown):
        tally.count("samples read")
        if isinstance(result, Refused):
            tally.refuse(result)
            continue
        example, changes = result
        tally.count(f"written {kind}, {_how_many(len(example.images))}")
        for change in changes:
            tally.count(f"changed: {change}", example.id)
        yield example


def _attempt(
    samples: Sequence[Any], pictures: Pictures, number: int
) -> tuple[Example, list[str]] | Refused:
    try:
        return to_example(samples[number], number, pictures)
    except Refused as refused:
        return refused


def _how_many(images: int) -> str:
    return {0: "text only", 1: "one image"}.get(images, "several images")


def _id(sample: Sample, number: int) -> str:
    """The sample's own id, else its place in the file."""
    own = sample.get("id")
    return str(own) if own not in (None, "") else f"sample-{number}"


def _group(sample: Any, number: int, pictures: Pictures) -> str:
    if not isinstance(sample, dict):
        return f"sample-{number}"
    try:
        return "|".join(pictures.of(sample)) or _id(sample, number)
    except Refused:
        return _id(sample, number)


def _turns(sample: Sample, sample_id: str) -> tuple[tuple[Turn, ...], list[str]]:
    turns = tuple(_turn(*pair, sample_id) for pair in _pairs(sample, sample_id))
    changes = []
    if turns and turns[0].role == "assistant":  # as LLaVA's preprocess_v1 does
        turns = turns[1:]
        changes.append("the assistant spoke first: that turn left out, as LLaVA does")
    for number, (before, after) in enumerate(itertools.pairwise(turns)):
        if before.role == after.role:
            raise Refused("turns do not alternate", f"{sample_id}: two of {after.role} at {number}")
    return turns, changes


def _pairs(sample: Sample, sample_id: str) -> list[tuple[Any, Any]]:
    """The (role, text) pairs, from a list of turns or from a dict of two lists."""
    spoken = sample.get("conversations", sample.get("conversation")) or []
    if isinstance(spoken, dict):
        roles, texts = spoken.get("from"), spoken.get("value")
        if isinstance(roles, list) and isinstance(texts, list) and len(roles) == len(texts):
            return list(zip(roles, texts))
    elif isinstance(spoken, list) and all(isinstance(turn, dict) for turn in spoken):
        return [(turn.get("from"), turn.get("value")) for turn in spoken]
    raise Refused("conversations are not a list of turns", sample_id)


def _turn(role: Any, text: Any, sample_id: str) -> Turn:
    if not isinstance(role, str) or role not in ROLES:
        expected = ", ".join(ROLES)
        raise Refused("unknown role", f"{sample_id}: {role!r}, expected one of {expected}")
    if not isinstance(text, str) or not text.strip():
        raise Refused("empty turn", f"{sample_id}: of {role}")
    return Turn(ROLES[role], text)


def _check_markers(turns: tuple[Turn, ...], images: int, sample_id: str) -> None:
    """Markers may be absent: images come first then. Otherwise each stands for one image."""
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns if turn.role == "human")
    if markers and markers != images:
        raise Refused(
            f"wrong number of {IMAGE_MARKER} markers",
            f"{sample_id}: {markers} for {images} image{'' if images == 1 else 's'}",
        )


def _read_samples(path: str) -> list[Any]:
    samples = files.read_json(path)
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path}: expected a list of samples, found {type(samples).__name__}")
    return samples


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.llava_json",
        description="Turn LLaVA JSON and a folder of images into record sets.",
    )
    add = parser.add_argument
    add("--json", required=True, metavar="FILE", help="the list of samples")
    add("--images", required=True, metavar="DIR", help="folder that image paths start from")
    add("--out", required=True, metavar="DIR", help="sets are written to DIR/SPLIT, DIR/heldout")
    add("--name", default="llava", help="name of the data set, an identifier (default: llava)")
    add("--split", default="train", help="name of the set that is not held out (default: train)")
    add(
        "--heldout",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="share of the images whose samples go to DIR/heldout (default: 0)",
    )
    add(
        "--size",
        type=int,
        default=336,
        metavar="PIXELS",
        help="larger images are stored at this size, the tower's side; 0 keeps them (default: 336)",
    )
    command.add_image_option(parser)
    add("--id-images", action="store_true", help="where `image` is absent, take <id>.jpg")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when records were written, 2 for a mistake of the user's."""
    arguments = _arguments(argv)
    pictures = Pictures(arguments.images, arguments.size, arguments.image, arguments.id_images)
    return command.run(
        "llava_json",
        lambda tally: convert(
            _read_samples(arguments.json),
            arguments.out,
            pictures=pictures,
            name=arguments.name,
            split=arguments.split,
            heldout=arguments.heldout,
            tally=tally,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
