"""Checks that what a run reads and writes outlives the machines that it runs on.

python launch/outlives.py STORAGE WORK RUN.yaml [--KEY.OF.THE.FILE VALUE ...]

STORAGE is where storage is mounted that outlives them, WORK the folder from which relative paths
are meant. Neither need exist on this machine. The exit code is 2 if something lies elsewhere.
"""

import posixpath
import sys
from collections.abc import Sequence

from astrollava_jax.cli.train import parsed
from astrollava_jax.run.config import read_run


def main(words: Sequence[str]) -> int:
    """Says where everything stands, or what has to be changed; returns the exit code."""
    storage, work, *rest = words
    if beyond(work, storage):
        say(f"--work: expected a folder below {storage} (--storage), found {work}")
        return 2
    try:
        there = {
            key: posixpath.normpath(posixpath.join(work, path)) for key, path in paths(rest).items()
        }
    except (ValueError, OSError) as error:
        say(str(error))
        return 2
    faults = {key: path for key, path in there.items() if beyond(path, storage)}
    for key, path in faults.items():
        say(
            f"{key}: expected a path below {storage} (--storage), found {path}, which is on the "
            "machine's own disk and vanishes with it: put it on the storage, and change the file, "
            f"or give --{key.split()[0]} PATH after it"
        )
    if not faults:
        print("\n".join(f"  {key}: {path}" for key, path in there.items()))
    return 2 if faults else 0


def paths(words: Sequence[str]) -> dict[str, str]:
    """Everything that a run reads or writes, as it is stated: key -> path.

    Args:
        words: the command line of `astrollava train`.

    Raises:
        ValueError: all that is wrong with the file.
    """
    arguments, overrides = parsed(words)
    run = read_run(arguments.run, overrides)
    init = {f"init.{key}": getattr(run.init, key) for key in ("model", "vision", "llm", "base")}
    data = {f"data.{number}.records": one.records for number, one in enumerate(run.data)}
    held_out = {"evaluate.records": run.evaluate.records} if run.evaluate else {}
    bases = {f"base {number}": base for number, base in enumerate(arguments.bases, start=1)}
    named = {"out": run.out} | init | data | held_out | bases
    return {key: path for key, path in named.items() if path is not None}


def beyond(path: str, folder: str) -> bool:
    """Whether an absolute path is not the folder, nor below it; both by their names alone."""
    path, folder = posixpath.normpath(path), posixpath.normpath(folder)
    return path != folder and not path.startswith(folder.rstrip("/") + "/")


def say(text: str) -> None:
    """Tells a fault."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
