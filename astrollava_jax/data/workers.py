"""How worker processes live: deaf to the signals of the run, and never longer than the run.

A signal for the run (Ctrl-C, a preemption) reaches its whole process group. The training process
decides what to do about it, and needs its workers until it has decided.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerDied(RuntimeError):
    """A worker process ended before its work did; started again, the run goes on."""

    resumable = True

    def __init__(self, found: str):
        super().__init__(
            f"a process that prepares data died ({found}): killed from outside, as by the kernel "
            "when memory is short (-9), or /dev/shm is full (-7); give it more memory, or set "
            "`workers` lower, and start the run again to go on"
        )


def begin() -> None:
    """Makes this process a worker: call it first, in the worker.

    It prints the stacks of its threads when SIGUSR2 comes, as the training process does.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.stderr is not None:  # closed when the run was started
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Holds signals back from threads and processes started inside, until these are workers.

    What arrives meanwhile is not lost: it is delivered to this thread at the end.
    """
    # The first start of the tracker unblocks these very signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
