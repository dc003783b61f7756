"""A source that runs ahead in a thread."""

import threading

from astrollava_jax.training import prefetch
from astrollava_jax.training.prefetch import Prefetch


def test_a_source_that_hangs_keeps_nobody_who_leaves(monkeypatch):
    monkeypatch.setattr(prefetch, "CLOSING_SECONDS", 0.2)
    comes = threading.Event()

    def source():
        yield 1
        comes.wait()

    running = Prefetch(source())
    assert next(running) == 1
    running.close()
    assert running._thread.is_alive()
    comes.set()
    running._thread.join()
