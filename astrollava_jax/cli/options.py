"""Parsers of commands, and options that several of them share."""

import argparse


def parser(command: str, told: str, usage: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command, whose help is laid out as it is written."""
    return argparse.ArgumentParser(
        prog=f"astrollava {command}",
        description=told,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage and f"astrollava {command} {usage}",
    )


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
