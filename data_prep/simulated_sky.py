"""Records of the simulated sky: pictures drawn from a seed, with words of known truth.

    python -m data_prep.simulated_sky --out data/sky/train --count 30000 --seed 0 --split train

Another seed, or another `--start`, makes other pictures: that is how held-out ones are kept apart.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

from astrollava_jax import files
from astrollava_jax.data.tfrecord import SetInfo, write_set
from astrollava_jax.quickstart.examples import examples

NAME = "simulated_sky"
DESCRIPTION = (
    "Simulated pictures of the sky (sky {seed}, {size} pixels) with what they show in words."
)
SMALLEST = 16  # pixels: below, nothing can be told apart


def write(
    out: files.Where,
    *,
    count: int,
    seed: int,
    split: str,
    start: int = 0,
    size: int = 64,
    workers: int = 1,
) -> SetInfo:
    """Writes one set of the scenes `start` to `start + count`.

    Raises:
        ValueError: if a number is too low; all of them are named together.
    """
    lowest = {"count": 1, "seed": 0, "start": 0, "size": SMALLEST, "workers": 1}
    given = {"count": count, "seed": seed, "start": start, "size": size, "workers": workers}
    low = [
        f"{name}: expected at least {lowest[name]}, found {given[name]}"
        for name in given
        if given[name] < lowest[name]
    ]
    if low:
        raise ValueError("\n".join(low))
    console = Console(stderr=True)
    made = examples(seed, count, start=start, size=size, workers=workers)
    shown = track(made, "drawing", count, console=console, disable=not console.is_terminal)
    description = DESCRIPTION.format(seed=seed, size=size)
    return write_set(out, shown, name=NAME, split=split, description=description)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.simulated_sky",
        description="Draw a simulated sky and write it as a record set.",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the set's folder; must not be there yet")
    add("--count", required=True, type=int, metavar="N", help="how many pictures")
    add("--seed", type=int, default=0, help="names the sky; default 0")
    add("--start", type=int, default=0, metavar="N", help="index of the first picture; default 0")
    add("--split", default="train", help="name of the split; default train")
    add("--size", type=int, default=64, help="side of the pictures in pixels; default 64")
    workers = os.cpu_count() or 1
    add("--workers", type=int, default=workers, help="processes that draw; default one per core")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when records were written, 2 for a mistake of the user's."""
    arguments = vars(_arguments(argv))
    try:
        info = write(arguments.pop("out"), **arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{info.folder}: {info.num_examples} examples, {info.num_bytes / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
