"""What a disk that is full, or only reads, makes of a save: one reason, told once."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

REASONS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))
"""As the system and tensorstore tell them."""


def reason(error: BaseException) -> str | None:
    """Which of the reasons an error of any library tells of."""
    return next((reason for reason in REASONS if reason in str(error)), None)


def tell_once() -> None:
    """From now on, such a disk is told of by the error that ends the save alone.

    Orbax logs it with a traceback in each of its threads, though each hands it on. When the first
    has ended the save, tensorstore calls back into event loops that are closed.
    """
    logging.getLogger("absl").addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    handed_on = "_SignalingThread.run() raised" in str(record.msg)
    return not (handed_on and error is not None and reason(error))


class _Unraisable:
    """Tells what C++ could not raise, but for calls into an event loop that is closed."""

    def __init__(self, tell: Callable[[Any], Any]):
        self._tell = tell

    def __call__(self, unraisable: Any) -> None:
        frames = [frame.name for frame in traceback.extract_tb(unraisable.exc_traceback)]
        if frames != ["call_soon_threadsafe", "_check_closed"]:
            self._tell(unraisable)
