"""A run directory while a run goes on in it: whether it is still there, and what was good in it.

.lock             held by the process that trains here; it ends with the process
last_good.json    the step that was found whole last. It stands beside the checkpoints, so that
                  their loss is noticed: `log.jsonl` tells of a save one step later, of the last
                  one never
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from astrollava_jax import files
from astrollava_jax.run import directory

PATIENCE_SECONDS = 10.0
"""For a process that trained here and has not quite ended."""


@contextlib.contextmanager
def alone(folder: str) -> Iterator[Callable[[], str | None]]:
    """Keeps a run directory to this process while the block runs.

    A run that was killed just now may still hold it for a moment, which is waited for.

    Gives what says why the lock is gone, or None as long as it is there.

    Raises:
        ValueError: if another process trains in it.
    """
    lock = files.join(files.make_folder(folder), directory.LOCK)
    end = time.monotonic() + PATIENCE_SECONDS
    with contextlib.ExitStack() as held:
        while True:
            try:
                displaced = held.enter_context(files.locked(lock))
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ValueError(
                        f"{folder}: another process trains in it: wait for its end, or choose "
                        "another `out`"
                    ) from None
                time.sleep(0.1)
        yield displaced


def lost(folder: str, run: str | None, displaced: Callable[[], str | None]) -> str | None:
    """Why a run that goes on has lost its directory, or None if it is there as it was.

    Args:
        folder: the directory.
        run: whose it was, as `directory.run_name` tells.
        displaced: what `alone` gave.
    """
    why = displaced()
    if why is None:
        try:
            if directory.run_name(folder) == run:
                return None
            why = "belongs to another run now"
        except FileNotFoundError:
            why = f"was emptied: {directory.BASE} is gone"
        except (OSError, ValueError) as error:
            why = f"cannot be read any more ({error})"
    return f"{folder}: this run directory {why}, while the run went on"


def note_good(folder: str, step: int) -> None:
    """Keeps it beside the checkpoints that this one was found whole."""
    files.write_json(files.join(folder, directory.LAST_GOOD), {"step": step})


def last_good(folder: str) -> int | None:
    """The step that was found whole last, whether it is still there or not."""
    path = files.join(folder, directory.LAST_GOOD)
    return files.read_json_object(path).get("step") if files.exists(path) else None


def check_not_emptied(folder: str) -> None:
    """Refuses a run directory without a good checkpoint that had one, unless it is set aside there.

    Raises:
        ValueError: says which it was.
    """
    step = last_good(folder)
    if step is None or directory.is_aside(folder, step):
        return
    raise ValueError(
        f"{folder}: checkpoint {step} was good, but no good one is left in "
        f"{folder}/{directory.CHECKPOINTS}: they were removed or moved, or what they lie on is not "
        "mounted. Put them back to go on; to begin anew, remove the whole run directory, or choose "
        "another `out`"
    )
