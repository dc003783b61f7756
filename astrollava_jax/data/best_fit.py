"""Fills rows with samples: best fit, longest first."""

from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int32

_ROW_BITS = 32


def best_fit_decreasing(
    tokens: Int32[np.ndarray, "n"],
    images: Int32[np.ndarray, "n"],
    length: int,
    max_images: int | None,
) -> list[list[int]]:
    """Puts each sample, longest first, into the fullest row that still has room for it.

    Returns:
        Rows of sample numbers, the longest sample of a row first. Rows come in the order of their
        longest samples in the input, so that long rows and short ones are not kept apart.
    """
    rows: list[list[int]] = []
    open_rows = _OpenRows(max_images)
    sizes, counts = tokens.tolist(), images.tolist()
    for sample in np.argsort(-tokens, kind="stable").tolist():
        found = open_rows.take(sizes[sample], counts[sample])
        if found is None:
            found = (len(rows), length, 0)
            rows.append([])
        row, free, held = found
        rows[row].append(sample)
        open_rows.put(row, free - sizes[sample], held + counts[sample])
    return sorted(rows, key=lambda row: row[0])


class _OpenRows:
    """The rows with room, found by the positions that they have free."""

    def __init__(self, max_images: int | None):
        self._max_images = max_images
        # One list per number of images held, of (free positions, row) in one integer, ascending.
        # Where images are not limited, their number makes no difference, and one list holds all.
        self._by_images: list[list[int]] = [[] for _ in range((max_images or 0) + 1)]

    def take(self, size: int, images: int) -> tuple[int, int, int] | None:
        """Takes out the fullest row with this much room: (row, free positions, images held)."""
        best = None
        last = 0 if self._max_images is None else self._max_images - images
        for held, keys in enumerate(self._by_images[: last + 1]):
            place = bisect_left(keys, size << _ROW_BITS)
            if place < len(keys) and (best is None or keys[place] < best[0]):
                best = keys[place], held, place
        if best is None:
            return None
        key, held, place = best
        del self._by_images[held][place]
        return key & ((1 << _ROW_BITS) - 1), key >> _ROW_BITS, held

    def put(self, row: int, free: int, held: int) -> None:
        """Puts a row back, with what is left of it."""
        insort(self._by_images[0 if self._max_images is None else held], free << _ROW_BITS | row)
