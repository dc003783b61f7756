"""Turns LLaVA JSON, a list of samples, and the folder of their images into record sets.

    python -m data_prep.llava_json --json chat.json --images images/ --out data/mine --heldout 0.02

    [{"id": "7", "image": "sky/7.jpg", "conversations": [
        {"from": "human", "value": "<image> What is this?"},
        {"from": "gpt", "value": "A nebula."}]}]

A sample without `image` is text only; a list of images is several images. Their paths start from
the folder and stay in it. `caption`, `source`, `credit`, `license` and `url` are kept where they
are texts; other keys are ignored. What cannot be taken is counted and named.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from astrollava_jax import files
from astrollava_jax.data.example import Example
from astrollava_jax.data.tfrecord import SetInfo, write_set
from data_prep import command
from data_prep.llava_sample import Draft, Pictures, read_sample, to_example
from data_prep.parallel import ordered_map
from data_prep.split import connected, held_out, together
from data_prep.tally import Refused, Tally

HELD_OUT = "heldout"

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    All samples of one image go to the same set. Both sets are written, or none.
    """
    if not files.is_folder(pictures.folder):
        raise FileNotFoundError(f"{pictures.folder}: expected the folder of the images, found none")
    if heldout and split == HELD_OUT:
        raise ValueError(f"--split {split}: held-out samples go there, choose another name")
    for part in [split, HELD_OUT] if heldout else [split]:
        if files.exists(files.join(out, part)):
            raise FileExistsError(f"{files.join(out, part)} exists: choose another --out")
    parts = _parts(_read(samples, pictures, tally), split, heldout)
    return together(
        write_set(
            files.join(out, part),
            _examples(drafts, pictures, part, tally),
            name=name,
            split=part,
        )
        for part, drafts in parts.items()
    )


def _read(samples: Sequence[Any], pictures: Pictures, tally: Tally) -> list[Draft]:
    def read(number: int) -> Draft:
        return read_sample(samples[number], number, pictures)

    for _ in samples:
        tally.count("samples read")
    return list(_taken(read, range(len(samples)), "reading words", tally))


def _parts(drafts: list[Draft], split: str, heldout: float) -> dict[str, list[Draft]]:
    """The drafts of each set, by its name.

    The held-out set comes first: it is small, so that one finds out soon if it cannot be written.
    """
    groups = connected([draft.names or (draft.words.id,) for draft in drafts])
    kept_out = held_out(groups, heldout)
    parts = {split: [draft for draft, group in zip(drafts, groups) if group not in kept_out]}
    if not kept_out:
        return parts
    return {HELD_OUT: [d for d, group in zip(drafts, groups) if group in kept_out], **parts}


def _examples(
    drafts: list[Draft], pictures: Pictures, part: str, tally: Tally
) -> Iterator[Example]:
    def finish(draft: Draft) -> tuple[Draft, Example]:
        return draft, to_example(draft, pictures)

    for draft, example in _taken(finish, drafts, f"to {part}", tally):
        tally.count(f"taken for {part}, {_how_many(len(example.images))}")
        for change in draft.changes:
            tally.count(f"changed: {change}", example.id)
        yield example


def _taken(
    make: Callable[[Item], Result], items: Sequence[Item], doing: str, tally: Tally
) -> Iterator[Result]:
    """What is made of each item; those that are refused are counted and named."""
    console = Console(stderr=True)
    shown = track(items, doing, console=console, disable=not console.is_terminal)
    for result in ordered_map(functools.partial(_attempt, make), shown):
        if isinstance(result, Refused):
            tally.refuse(result)
        else:
            yield result


def _attempt(make: Callable[[Item], Result], item: Item) -> Result | Refused:
    try:
        return make(item)
    except Refused as refused:
        return refused


def _how_many(images: int) -> str:
    return {0: "text only", 1: "one image"}.get(images, "several images")


def _read_samples(path: str) -> list[Any]:
    samples = files.read_json(path)
    if not isinstance(samples, list) or not samples:
        found = "an empty one" if samples == [] else type(samples).__name__
        raise ValueError(f"{path}: expected a list of samples, found {found}")
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
