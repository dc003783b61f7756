"""What the proofs of this room have in common as commands: their options, and how they end."""

import argparse
from collections.abc import Callable, Iterable, Sequence


def parser(program: str, about: str | None, work: str) -> argparse.ArgumentParser:
    """The options of a proof: `--work`, and what is added.

    Args:
        program: the module's name in this room.
        about: the module's docstring.
        work: what the folder `--work` is for.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {__package__}.{program}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--work", required=True, metavar="DIR", help=work)
    return made


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads an option's value: some of the names, with commas between them, in their order there.

    A name that is unknown is said, before anything is run.
    """
    known = list(names)

    def read(value: str) -> list[str]:
        chosen = value.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, found {', '.join(unknown)}"
            )
        return chosen

    return read


def at_least(least: int) -> Callable[[str], int]:
    """Reads an option's value: a whole number that is not less."""

    def read(value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise argparse.ArgumentTypeError(f"expected a number from {least} on, found {value}")
        return int(value)

    return read


def ended(faults: Sequence[str], figures: str) -> int:
    """Tells the faults, or that there are none, and where the figures are; the exit code."""
    print("\n".join(faults) or f"as it must be; the figures are in {figures}")
    return 1 if faults else 0
