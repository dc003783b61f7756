"""A disk that is soon full, and what Orbax says of it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def orbax_may_stumble(test):
    """Threads of Orbax that are still at work when its event loop is closed complain of that."""
    for kind in ("PytestUnhandledThreadExceptionWarning", "PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::pytest.{kind}")(test)
    return test


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int = 300) -> Iterator[Path]:
    """A file system of its own; skips where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only an administrator may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
