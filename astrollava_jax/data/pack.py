"""The plan of a run: which samples make each step, and in which row each of them stands.

It is made before the first step, of lengths alone, and gives everything that must be static: the
number of steps, of rows in a step, of learned positions and of images in a row. What a step holds
is a function of the seed and the step's number, so that a run can go on anywhere.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Int32

from astrollava_jax.config import config
from astrollava_jax.data.best_fit import best_fit_decreasing
from astrollava_jax.data.lengths import Lengths
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.rows import RowShape, Slot

WINDOW = 4096
"""Samples among which rows are filled where a step has no fixed number of samples. Larger windows
hardly fill better, and let samples stray farther from their place in the order."""

MOST = 2**20
"""Of anything that a step counts: no decoder tells so many positions apart, and no machine holds so
many rows."""

_LEARNED_MULTIPLE = 8


@config
class BatchConfig:
    """What one optimizer step sees, over all devices."""

    samples: int | None = None
    """Samples per step; they take as many rows as the fullest step needs."""
    rows: int | None = None
    """Rows per step, filled with as many samples as go in. Exactly one of `samples` and `rows`."""
    length: int
    """Positions of a row."""
    packing: bool = True
    """Whether a row may hold several samples."""
    max_images: int | None = None
    """Most images in a row, each tile counted; null for as many as fit."""
    rows_per_device: int | None = None
    """Rows that a device computes at a time; null for all of its rows."""

    def __post_init__(self):
        if (self.samples is None) == (self.rows is None):
            raise ValueError(
                f"samples is {self.samples} and rows is {self.rows}: state exactly one of them"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1 and field.name != "packing":
                raise ValueError(f"{field.name} is {value}, expected at least 1")
            if value is not None and value > MOST:
                raise ValueError(f"{field.name} is {value}, expected at most {MOST}")


class RunPlan:
    """What every step of a run holds.

    Attributes:
        total_steps: of the run.
        steps_per_epoch: one number per epoch that the run enters, of the steps that it makes there.
        rows: R, per step, over all processes; rows that a step does not need are empty.
        shape: T, K, I and S of every row.
        fill: which part of all positions is filled, empty rows counted.

    Args:
        mixture: gives the order of each epoch.
        lengths: of the mixture's records.
        batch: what a step sees.
        epochs: how often the mixture is passed; or else
        steps: how many steps are made, over as many epochs as it takes.
        multiple: what the number of rows must be a multiple of.

    Raises:
        ValueError: if neither or both of `epochs` and `steps` are stated, if `batch.rows` is no
            multiple of `multiple`, or a sample does not fit into a row.
    """

    def __init__(
        self,
        mixture: Mixture,
        lengths: Lengths,
        batch: BatchConfig,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        multiple: int = 1,
    ):
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs is {epochs} and steps is {steps}: state exactly one of them")
        _check_fits(mixture, lengths, batch)
        self.batch = batch
        self._lengths = lengths
        self._lay_out(mixture, epochs, steps)
        self.rows = _number_of_rows(batch, int(np.diff(self._step_starts).max()), multiple)
        self.shape = RowShape(
            length=batch.length,
            learned=_round_up(max(1, self._most(lengths.learned)), _LEARNED_MULTIPLE),
            # One at least: text alone has nothing to gather, but `gather` needs somewhere to look.
            images=max(1, self._most(lengths.images)),
            samples=max(1, self._most((lengths.tokens > 0).astype(np.int32))),
        )

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> list[list[Slot]]:
        """The rows of a step, empty ones too."""
        return [self.row(step, number) for number in range(self.rows)]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return len(self._step_starts) - 1

    @property
    def fill(self) -> float:
        """The filled part of all positions of the run, those of empty rows counted."""
        filled = int(self._lengths.tokens[self._records].sum(dtype=np.int64))
        return filled / (self.total_steps * self.rows * self.batch.length)

    def filled(self, step: int) -> float:
        """The filled part of a step's positions."""
        filled = int(self._lengths.tokens[self._records[self._span(step)]].sum())
        return filled / (self.rows * self.batch.length)

    def samples(self, step: int) -> int:
        """How many samples a step holds."""
        span = self._span(step)
        return span.stop - span.start

    def records(self, step: int) -> list[int]:
        """The ids of a step's records, in the order of its samples."""
        span = self._span(step)
        return self._records[span][np.argsort(self._numbers[span])].tolist()

    def row(self, step: int, number: int) -> list[Slot]:
        """What stands in one row of a step."""
        row = self._step_starts[step] + number
        if row >= self._step_starts[step + 1]:
            return []
        span = slice(self._row_starts[row], self._row_starts[row + 1])
        records = self._records[span]
        found = self._lengths
        columns = (records, self._numbers[span], found.tokens[records], found.images[records])
        columns = (*columns, found.learned[records])
        return [Slot(*values) for values in zip(*(column.tolist() for column in columns))]

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step of the run, and its number in that epoch."""
        starts = list(itertools.accumulate(self.steps_per_epoch, initial=0))
        epoch = bisect_right(starts, step) - 1
        return epoch, step - starts[epoch]

    def _span(self, step: int) -> slice:
        """Where a step's samples stand in the plan's list."""
        first, last = self._step_starts[step], self._step_starts[step + 1]
        return slice(int(self._row_starts[first]), int(self._row_starts[last]))

    def _most(self, counts: Int32[np.ndarray, "records"]) -> int:
        """The largest sum of `counts` over a row."""
        return int(np.add.reduceat(counts[self._records], self._row_starts[:-1]).max())

    def _lay_out(self, mixture: Mixture, epochs: int | None, steps: int | None) -> None:
        """Makes the list of samples, row by row and step by step."""
        records, numbers, row_lengths, step_rows, per_epoch = [], [], [], [], []
        for epoch in itertools.count() if epochs is None else range(epochs):
            order = mixture.order(epoch)
            missing = None if steps is None else steps - len(step_rows)
            before = len(step_rows)
            for rows in itertools.islice(_steps(order, self._lengths, self.batch), missing):
                places = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
                records.append(order[places])
                numbers.append(np.argsort(np.argsort(places)).astype(np.int32))
                row_lengths += [len(row) for row in rows]
                step_rows.append(len(rows))
            per_epoch.append(len(step_rows) - before)
            if len(step_rows) == steps:
                break
        self.steps_per_epoch = tuple(per_epoch)
        self._records = np.concatenate(records)
        self._numbers = np.concatenate(numbers)
        self._row_starts = np.cumsum([0, *row_lengths])
        self._step_starts = np.cumsum([0, *step_rows])


def _steps(
    order: Int[np.ndarray, "n"], lengths: Lengths, batch: BatchConfig
) -> Iterator[list[list[int]]]:
    """The steps of an epoch: each some rows of places in the order."""
    if batch.samples is not None:
        for start in range(0, len(order), batch.samples):
            yield _pack(order, lengths, batch, start, start + batch.samples)
        return
    windows = (
        _pack(order, lengths, batch, start, start + WINDOW)
        for start in range(0, len(order), WINDOW)
    )
    rows = itertools.chain.from_iterable(windows)
    while step := list(itertools.islice(rows, batch.rows)):
        yield step


def _pack(
    order: Int[np.ndarray, "n"], lengths: Lengths, batch: BatchConfig, start: int, stop: int
) -> list[list[int]]:
    """Rows of places in the order, out of one stretch of it."""
    stretch = order[start:stop]
    if not batch.packing:
        return [[start + place] for place in range(len(stretch))]
    rows = best_fit_decreasing(
        lengths.tokens[stretch], lengths.images[stretch], batch.length, batch.max_images
    )
    return [[start + place for place in sorted(row)] for row in rows]


def _number_of_rows(batch: BatchConfig, needed: int, multiple: int) -> int:
    if batch.rows is None:
        return _round_up(needed, multiple)
    if batch.rows % multiple:
        raise ValueError(
            f"batch.rows is {batch.rows}, which does not divide over the mesh: make it a multiple "
            f"of {multiple}"
        )
    return batch.rows


def _check_fits(mixture: Mixture, lengths: Lengths, batch: BatchConfig) -> None:
    assert len(mixture) == len(lengths.tokens)
    visits = len(mixture.order(0))
    if batch.samples is not None and batch.samples > visits:
        raise ValueError(
            f"batch.samples is {batch.samples}, but an epoch holds {visits} samples: make it at "
            "most that, or give the sets more weight"
        )
    assert lengths.tokens.max() <= batch.length
    most = int(lengths.images.max())
    if batch.max_images is not None and most > batch.max_images:
        count = np.count_nonzero(lengths.images > batch.max_images)
        raise ValueError(
            f"batch.max_images is {batch.max_images}, but {count} samples hold more images, up to "
            f"{most}: make it at least that"
        )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
