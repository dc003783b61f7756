"""Options that several commands share."""

import argparse


def add_base(parser: argparse.ArgumentParser) -> None:
    """`--base DIR`: where the original model of a run stands now."""
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="DIR",
        dest="bases",
        help="the model of an adapter; where a run's original model stands now, if it moved (for a "
        "tower and a decoder, give it twice)",
    )
