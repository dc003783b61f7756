"""What the proofs of this room have in common as commands: their options, and how they end."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence

from astrollava_jax import files

MARK = "written_by_bench.txt"
"""In a folder whose content a bench removes and writes anew."""


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


def unused_folder(path: str, runs: str) -> str:
    """Makes the folder of a proof's runs, unless it is there; returns the path.

    Args:
        path: the folder.
        runs: a pattern of the names of the runs that are to begin in it.

    Raises:
        ValueError: if it holds one: it would go on, or be complete, and nothing would be tested.
    """
    files.make_folder(path)
    old = [name for name in files.names(path) if re.fullmatch(runs, name)]
    if old:
        raise ValueError(
            f"{path}: expected none of the runs that are to begin here, found {', '.join(old)}: "
            "an old run would be taken for a new one; remove them, or give another --work"
        )
    return path


def own_folder(path: str) -> str:
    """Makes a folder whose content is a bench's own, to remove and write anew; returns the path.

    Raises:
        ValueError: if it holds something and no bench has made it.
    """
    mark = files.join(path, MARK)
    if not files.exists(mark):
        if files.exists(path) and not (files.is_folder(path) and not files.names(path)):
            raise ValueError(
                f"{path}: expected a new folder, or one that a bench has made, found another: what "
                "lies there might be removed; give another --work"
            )
        files.write_text(mark, "A bench removes what lies here, and writes it anew.\n")
    return path


def begun_anew(path: str) -> str:
    """Empties such a folder; returns the path.

    Raises:
        ValueError: as `own_folder`.
    """
    files.remove(own_folder(path))
    return own_folder(path)


def ended(faults: Sequence[str], figures: str) -> int:
    """Tells the faults, or that there are none, and where the figures are; the exit code."""
    print("\n".join(faults) or f"as it must be; the figures are in {figures}")
    return 1 if faults else 0
