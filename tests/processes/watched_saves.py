"""One of two watched processes that save; the second one's storage is slow, stops it, or is stuck.

    watched_saves.py STORAGE --out FOLDER

Started by test_watched_saves; it is its own parent, as `astrollava train` is.
"""

import os
import signal
import sys
import threading
import time

from astrollava_jax.cli import supervisor

FLOOR = 10.0
"""Seconds without progress that are a hang,"""
SLOW_SECONDS = 14.0
"""and those that the slow storage takes."""


def slow(path: str) -> None:
    """A little at a time, of a file of the step."""
    end = time.monotonic() + SLOW_SECONDS
    while time.monotonic() < end:
        read_some(path)
        time.sleep(0.2)


def stops(path: str) -> None:
    """The process goes on for a moment and is stopped then."""
    read_some(path)
    told_when()
    os.kill(os.getpid(), signal.SIGSTOP)


def is_stuck(path: str) -> None:
    """Nothing comes, ever, and the process is awake."""
    read_some(path)
    told_when()
    threading.Event().wait()


def read_some(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.pread(descriptor, 1 << 18, 0)
    os.close(descriptor)


def told_when() -> None:
    print(f"last progress {time.monotonic()}", flush=True)


def main(storage: str, folder: str) -> None:
    """Saves twice, and waits."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from astrollava_jax import files
    from astrollava_jax.run import processes
    from astrollava_jax.sharding import MeshConfig, place
    from astrollava_jax.training import stored
    from astrollava_jax.training.checkpoint import Checkpoints
    from astrollava_jax.training.optimizer import AdamState
    from astrollava_jax.training.state import Progress, TrainState
    from astrollava_jax.training.watchdog import Heart, WatchdogConfig

    heart = Heart(WatchdogConfig(floor_seconds=FLOOR))
    with processes.joined(FLOOR):
        heart.join(jax.process_count(), processes.count_together)
        read_back = stored.read_back

        def read_back_so(path: str, *others) -> list[str]:
            if path.endswith("/2") and jax.process_index() == 1:
                inside = [files.join(path, name) for name in files.walk(path)]
                globals()[storage](max(inside, key=files.size_bytes))
            return read_back(path, *others)

        stored.read_back = read_back_so
        everywhere = NamedSharding(MeshConfig().build(), PartitionSpec())
        numbers = np.random.default_rng(0).random(1 << 18, np.float32)
        kernel = {"a": place(numbers, everywhere)}
        state = TrainState(kernel, AdamState(place(np.int32(0), everywhere), kernel, kernel))
        checkpoints = Checkpoints(folder, keep=2)
        for step in (1, 2):
            heart.beat("checkpoint", f"after step {step}")
            checkpoints.save(state, Progress(step=step), {})
        heart.beat("checkpoint", "the last one")
        checkpoints.wait()
        heart.beat("end")
        print(f"good: {checkpoints.last_good}", flush=True)


if __name__ == "__main__":
    if supervisor.HEARTBEAT not in os.environ:
        sys.exit(supervisor._Supervisor([sys.executable, *sys.argv]).run())
    supervisor.begin_child()
    try:
        main(sys.argv[1], sys.argv[3])
        code = 0
    except Exception as error:
        print(error, flush=True)
        code = supervisor.RESUMABLE if getattr(error, "resumable", False) else supervisor.FAILED
    supervisor.end_child(code)
