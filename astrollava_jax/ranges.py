"""Reads ranges of files that stay open: a part of `files`, through which it is used."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

_OPEN_READERS = 128
"""How many range readers of a process keep their files open: a large set has more shards than a
process may open files, usually 1024, on some systems 256."""


class _Opened:
    """A file's descriptor, which is closed when nobody holds it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close):
        close(self.descriptor)  # bound above: at the interpreter's end, modules are gone already


class RangeReader:
    """Reads byte ranges of one file; safe in threads, and travels to worker processes.

    The file is open between reads only while its reader is one of the process's last
    `_OPEN_READERS` to have read.
    """

    _last: ClassVar[OrderedDict[int, _Opened]] = OrderedDict()
    """By the reader's `id`; the one that has waited longest is first."""
    _lock = threading.RLock()  # re-entrant: a collection inside may close other readers

    def __init__(self, path: str | os.PathLike[str]):
        self.path = str(path)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `[offset, offset + length)`, fewer where the file ends."""
        opened = self._open()  # held to the end: another thread may put it out of the last
        pieces = []
        while length > 0:
            piece = os.pread(opened.descriptor, min(length, 1 << 30), offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Closes the file once no thread reads it; a later read opens it again."""
        with self._lock:
            self._last.pop(id(self), None)

    def _open(self) -> _Opened:
        with self._lock:
            opened = self._last.pop(id(self), None)
            if opened is None:
                opened = _Opened(os.open(self.path, os.O_RDONLY))
            self._last[id(self)] = opened
            while len(self._last) > _OPEN_READERS:
                self._last.popitem(last=False)
        return opened

    def __del__(self):
        try:
            self.close()
        except Exception:  # at the interpreter's end, modules are gone already
            return
