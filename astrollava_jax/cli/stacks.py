"""The stacks of all threads of a run: of the process that trains and of those that help it."""

import faulthandler
import os
import signal

STACKS = signal.SIGUSR2
"""Makes a process print the stacks of its threads, and go on; `data.workers` answers it too."""


def answer() -> None:
    """From now on this process answers, even while C code holds the interpreter's lock."""
    faulthandler.register(STACKS, all_threads=True)


def helpers(process: int) -> list[int]:
    """The processes below another one that answer; those that do not, the signal would end."""
    found = [process]
    for parent in found:
        found += _children(parent)
    return [one for one in found[1:] if _answers(one)]


def _children(process: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{process}/task")
        lists = [_read(f"/proc/{process}/task/{thread}/children") for thread in threads]
    except OSError:  # it has ended, or the system tells nothing of processes
        return []
    return [int(child) for told in lists for child in told.split()]


def _answers(process: int) -> bool:
    try:
        caught = _read(f"/proc/{process}/status").partition("SigCgt:")[2].split()[0]
    except (OSError, IndexError):
        return False
    return bool(int(caught, 16) >> (STACKS - 1) & 1)


def is_stopped(process: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        return _read(f"/proc/{process}/stat").rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor) as handle:
        return handle.read()
