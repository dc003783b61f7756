"""A source that runs ahead in a thread."""

import threading

import pytest

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


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_comes_where_its_item_would_have_come(error):
    def source():
        yield 1
        yield 2
        raise error

    found, raised = [], []

    def read():
        running = Prefetch(source())
        try:
            found.extend(running)
        except BaseException as caught:
            raised.append(caught)
            with pytest.raises(type(error)):  # and again, whoever asks
                next(running)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive(), "nobody told the reader of the end"
    assert found == [1, 2] and raised == [error]
