"""What `bench input` measures: both programs in turn, their pixels, and how long a step waits."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from astrollava_jax import files
from astrollava_jax.bench.input_job import Job
from astrollava_jax.bench.input_ours import Ours
from astrollava_jax.bench.processor_time import settle

if TYPE_CHECKING:
    from astrollava_jax.bench.input_theirs import Theirs

LENGTH = 2048

Milliseconds = dict[str, list[float]]
"""Of processors, per picture, in each repetition."""

MEASURED = {
    "theirs": "transformers: original files",
    "originals": "ours: records of the original files",
    "records": "ours: records at training size",
    "pictures": "ours: of these the pictures alone, without words and rows",
    "library": "the JPEG library alone on these",
}
"""What is measured, in this order."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster one is than the other."""

    name: str
    slow: str
    fast: str
    least: float | None
    """To reach."""

    def of(self, found: Milliseconds) -> list[float]:
        """In each repetition."""
        return [slow / fast for slow, fast in zip(found[self.slow], found[self.fast])]


RATIOS = (
    Ratio("as used", "theirs", "records", 10.0),
    Ratio("same files, same pixels", "theirs", "originals", 1.3),
    Ratio("pictures against the JPEG library", "library", "pictures", 0.7),
    Ratio("whole input against the JPEG library", "library", "records", None),
)


def compared(ours: UInt8[np.ndarray, "n h w 3"], theirs: UInt8[np.ndarray, "m H W 3"]) -> list[str]:
    """Which pictures do not have the same pixels in both."""
    if ours.shape != theirs.shape:
        return [f"expected pixels {list(theirs.shape)}, found {list(ours.shape)}"]
    differences = np.abs(ours.astype(int) - theirs).reshape(len(ours), -1)
    return [
        f"photograph {number}: {np.count_nonzero(one)} numbers differ, by up to {one.max()}"
        for number, one in enumerate(differences)
        if one.any()
    ]


def measured(job: Job, workers: int, images: int, repeats: int) -> tuple[list[str], Milliseconds]:
    """Pictures that differ, and the times; `images` originals in each repetition."""
    many = 10 * images
    total = (repeats + 2) * many + 1000 * max(1, workers)
    feeds: list[Any] = [theirs_class()(job, workers, total)]
    try:
        feeds += [Ours(job, what, workers, total, LENGTH) for what in ("original", "small")]
        theirs, originals, records = feeds
        count = len(job.photographs)
        faults = compared(originals.pixels(count), theirs.pixels(count))
        ways: dict[str, Callable[[], float]] = {
            "theirs": lambda: _fed(theirs, images),
            "originals": lambda: _fed(originals, images),
            "records": lambda: _fed(records, many),
            "pictures": lambda: _alone(records.picture, count, many),
            "library": lambda: _alone(_decoding(records), count, many),
        }
        found: Milliseconds = {name: [] for name in MEASURED}
        for feed in feeds:
            feed.take()
        for repetition in range(repeats + 1):
            for name in MEASURED:
                milliseconds = 1e3 * ways[name]()
                if repetition:  # the first one warms up
                    found[name].append(milliseconds)
        return faults, found
    finally:
        for feed in feeds:
            feed.close()


def theirs_class() -> "type[Theirs]":
    """The other program.

    Raises:
        ValueError: if what it needs is not installed; says what to install.
    """
    try:
        from astrollava_jax.bench.input_theirs import Theirs
    except ImportError as error:
        raise ValueError(
            f"bench input measures beside PyTorch and transformers, but {error.name} is not there: "
            "install the extra `dev` (pip install torch==2.13.0, then pip install -e .[dev]), or "
            "take --packing-only, which needs neither"
        ) from None
    return Theirs


def _fed(feed: "Ours | Theirs", images: int) -> float:
    """Seconds per picture, of the program and its workers, from one rest to the next."""
    before, taken = settle(), 0
    while taken < images:
        taken += feed.take()
    return (settle() - before) / taken


def _alone(one: Callable[[int], Any], count: int, images: int) -> float:
    """Seconds per picture, in this thread."""
    before = time.process_time()
    for number in range(images):
        one(number % count)
    return (time.process_time() - before) / images


def _decoding(records: Ours) -> Callable[[int], Any]:
    encoded = [records.encoded(number) for number in range(records.count)]
    return lambda number: simplejpeg.decode_jpeg(encoded[number], "RGB")


def waited(job: Job, workers: int, rate: float, steps: int) -> float:
    """The part of the time for which steps that take as long as real ones wait for their input."""
    feed = Ours(job, "small", workers, int((steps + 10) * rate), LENGTH)
    try:
        feed.take()
        settle()
        waiting, began = 0.0, time.monotonic()
        for _ in range(steps):
            asked = time.monotonic()
            images = feed.take()
            waiting += time.monotonic() - asked
            time.sleep(images / rate)  # where a device would work
        return waiting / (time.monotonic() - began)
    finally:
        feed.close()


def bits_per_pixel(encoded: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> float:
    """Of all these pictures together."""
    return 8 * sum(map(len, encoded)) / sum(width * height for width, height in sizes)


def told(found: Milliseconds) -> list[str]:
    """The lines of the two tables: times, then ratios."""
    lines = [f"{'milliseconds of processors per picture':<60}median  (least to most)"]
    for name, what in MEASURED.items():
        times = found[name]
        lines.append(f"  {what:<58}{_spread(times, '.2f')}")
    lines.append(f"{'times faster':<60}median  (least to most)")
    for ratio in RATIOS:
        values = ratio.of(found)
        goal = "" if ratio.least is None else f"  to reach: {ratio.least:g}, {_met(ratio, values)}"
        lines.append(f"  {ratio.name:<58}{_spread(values, '.2f')}{goal}")
    return lines


def _met(ratio: Ratio, values: list[float]) -> str:
    assert ratio.least is not None
    return "reached" if statistics.median(values) >= ratio.least else "NOT reached"


def _spread(values: Sequence[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):>6{form}}  ({low:{form}} to {high:{form}})"


def _sizes(paths: Sequence[str]) -> list[tuple[int, int]]:
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def pictures(job: Job) -> str:
    """One line on the photographs."""
    sizes = _sizes(job.photographs)
    bits = bits_per_pixel([files.read_bytes(path) for path in job.photographs], sizes)
    mean = sum(width * height for width, height in sizes) / len(sizes) / 1e6
    return (
        f"{len(sizes)} photographs, mean {mean:.2f} megapixels, JPEG at {bits:.2f} bits per pixel"
    )
