"""Standard streams that end no run when nobody is there any more to read them."""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""How a pipe that was closed and a terminal that was hung up answer, from then on."""


class Lasting:
    """A text stream whose errors of the system are nobody's; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with self._lasting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lasting(self):
        try:
            yield
        except OSError as error:
            if error.errno in GONE:  # what is buffered would be tried again at the end
                with contextlib.suppress(OSError, ValueError):
                    nothing = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nothing, self._stream.fileno())
                    os.close(nothing)


def make_lasting() -> None:
    """Makes stdout and stderr of this process such streams.

    Those that were closed at the start lead nowhere: else a file of the run would get their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(stream))
