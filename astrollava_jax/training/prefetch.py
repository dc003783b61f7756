"""Makes the next steps' batches while the device works on this one."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_END = object()
CLOSING_SECONDS = 10.0
"""After which a source that gives nothing is left to itself; it ends with the process."""


class Prefetch(Generic[Item]):
    """An iterator that runs ahead in a thread by at most `depth` items.

    An exception of the source is raised where its item would have come. `close` ends the thread.
    """

    def __init__(self, source: Iterator[Item], depth: int = 2):
        self._source = source
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetch[Item]":
        return self

    def __next__(self) -> Item:
        item, error = self._queue.get()
        if error is not None:
            self._queue.put((_END, error))
            raise error
        return item

    def close(self) -> None:
        """Stops the thread and closes the source, unless that hangs."""
        self._closed.set()
        end = time.monotonic() + CLOSING_SECONDS
        while self._thread.is_alive() and time.monotonic() < end:
            _drain(self._queue)
            self._thread.join(timeout=0.05)

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._put((item, None)):
                    break
            else:
                self._put((_END, StopIteration()))
        except BaseException as error:  # whatever it is, who waits must hear of it
            self._put((_END, error))
        finally:
            close: Callable[[], None] | None = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _put(self, item: tuple) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _drain(waiting: queue.Queue) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return
