"""Locks that end with the process which holds them: a part of `files`, through which it is used."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[Callable[[], str | None]]:
    """Holds a lock, which ends with the process at the latest; BlockingIOError if another does.

    Gives what says why the lock is not at its path any more, or None as long as it is.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            # A file system without locks: two writers are then the user's to avoid.
        yield lambda: _displaced(descriptor, path)
    finally:
        os.close(descriptor)


def _displaced(descriptor: int, path: str | os.PathLike[str]) -> str | None:
    """Why an open file is not the one at its path any more, or None."""
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return None
    except FileNotFoundError:
        return "was removed or moved away, or what it lies on is not mounted any more"
    except OSError as error:  # what a mount that vanishes leaves: ESTALE, ENOTCONN, EIO
        return f"cannot be reached any more ({error.strerror})"
    return "was replaced by another one"


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock just now, as far as the file system tells.

    Who wants to hold it may find it taken for the moment of the question.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False
