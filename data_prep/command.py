"""The command line of conversions: an option that they share, and how one is run and reported."""

import argparse
import sys
from collections.abc import Callable
from typing import get_args

from astrollava_jax.data import image
from astrollava_jax.data.tfrecord import SetInfo
from data_prep.tally import Tally


def add_image_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--image`, which names the mode that pictures are stored for."""
    parser.add_argument(
        "--image",
        choices=get_args(image.Mode),
        default="pad",
        help="how they will be made square: which side --size means (default: pad)",
    )


def run(name: str, convert: Callable[[Tally], list[SetInfo]]) -> int:
    """Runs a conversion and prints what became of it; 0 when it is done, 2 for a user's mistake."""
    tally = Tally()
    try:
        sets = convert(tally)
    except (ValueError, OSError) as error:
        print(tally, f"{name}: {error}", sep="\n", file=sys.stderr)
        return 2
    print(tally)
    for written in sets:
        print(f"{written.folder}: {written.num_examples} records, {written.num_bytes:,} bytes")
    return 0
