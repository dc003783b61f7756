"""The page of memory in which a run says what it waits for: the parent's side of it.

`training.watchdog` writes it.
"""

import contextlib
import json
import mmap
import os
from typing import Any

PAGE_BYTES = 1024
"""The side that writes finds out how many there are."""


class Page:
    """What the child writes; on systems without such memory, nothing ever."""

    def __init__(self):
        make = getattr(os, "memfd_create", None)
        self.descriptor: int | None = make("astrollava") if make else None
        self._memory: Any = None
        self._last: dict[str, Any] = {}
        if self.descriptor is not None:
            os.truncate(self.descriptor, PAGE_BYTES)
            self._memory = mmap.mmap(self.descriptor, PAGE_BYTES)

    def read(self) -> dict[str, Any]:
        """The newest facts; those before, if they are just being written."""
        if self._memory is not None:
            with contextlib.suppress(ValueError):
                self._last = json.loads(self._memory[:].rstrip(b"\0") or b"{}")
        return self._last
