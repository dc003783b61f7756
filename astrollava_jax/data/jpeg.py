"""The segments of a JPEG file, as far as they tell how much work its pixels are."""

import re

_MARKER = re.compile(rb"\xff([^\x00\xff])")
"""In coded pixels 0xFF stands before a zero, or a marker that needs nothing (`_ALONE`)."""

_END, _SCAN = 0xD9, 0xDA
_FIRST_WITH_LENGTH = 0xC0
"""Markers below it are reserved: what follows one is looked at, as it is by decoders that go on."""
_ALONE = range(0xD0, _END)
"""Restarts and the start of an image: no length follows."""


def scans(encoded: bytes) -> int:
    """How often a decoder passes over the pixels of a JPEG.

    What a segment holds (the small preview in EXIF is a JPEG too) does not count, nor what stands
    behind the end of the image: further images, or the film that phones append.
    """
    found, position = 0, 0
    while (marker := _MARKER.search(encoded, position)) is not None:
        code, position = marker[1][0], marker.end()
        if code == _END:
            break
        found += code == _SCAN
        if code >= _FIRST_WITH_LENGTH and code not in _ALONE:
            position += max(2, int.from_bytes(encoded[position : position + 2], "big"))
    return found
