"""Processor time of this process and of the workers that it started; Linux only.

Unlike time on the clock, it hardly changes with what else a machine has to do.
"""

import multiprocessing
import resource
import time

from astrollava_jax import files

_POLL_SECONDS = 0.02
_STILL_POLLS = 8
_IDLE_SHARE = 0.1
"""Of a poll's length: threads that wait wake up now and then."""
MOST_SECONDS = 900.0


def tree_seconds() -> float:
    """User and system time so far, of this process and of all its workers, ended ones too."""
    workers = [process.pid for process in multiprocessing.active_children()]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = sum(_seconds(pid) for pid in workers if pid is not None)
    return time.process_time() + ended.ru_utime + ended.ru_stime + alive


def settle() -> float:
    """Waits until all workers have filled what they fill ahead; returns `tree_seconds` of then.

    Between two such moments exactly as much was made as was taken.

    Raises:
        TimeoutError: if they are still at work after a quarter of an hour.
    """
    still, before, began = 0, tree_seconds(), time.monotonic()
    while still < _STILL_POLLS:
        if time.monotonic() - began > MOST_SECONDS:
            raise TimeoutError(f"workers have not come to rest in {MOST_SECONDS:g} seconds")
        time.sleep(_POLL_SECONDS)
        now = tree_seconds()
        resting = now - before < _IDLE_SHARE * _POLL_SECONDS and not _any_runs()
        still = still + 1 if resting else 0
        before = now
    return before


def _seconds(pid: int) -> float:
    # The clock of another process, by the number that Linux gives it: clock_getcpuclockid(3).
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # it has just ended, and is among those that have the next time
        return 0.0


def _any_runs() -> bool:
    """Whether a thread of a worker works, or would if a processor were free."""
    for process in multiprocessing.active_children():
        folder = f"/proc/{process.pid}/task"
        try:
            threads = [files.read_text(files.join(folder, t, "stat")) for t in files.names(folder)]
        except OSError:  # a thread has just ended
            return True
        # The state stands behind the name, which may hold anything, in parentheses.
        if any(thread.rpartition(")")[2].split()[0] in "RD" for thread in threads):
            return True
    return False
