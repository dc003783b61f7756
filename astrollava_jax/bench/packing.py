"""How full the rows are that the planner makes, beside what any planner could reach."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int32, Num

from astrollava_jax.bench.length_mixes import MIXES
from astrollava_jax.data.best_fit import best_fit_decreasing
from astrollava_jax.data.lengths import Lengths
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan

LEAST = {2048: 0.87, 4096: 0.92, 8192: 0.95}
"""To be filled of rows of these lengths, empty rows counted."""
MOST_BELOW_UNLIMITED = 0.01
REACHED_FOR = ("AstroLLaVA", "LLaVA-665k")
"""The mixes for which that is to hold; the others are shown beside them."""

POSITIONS = 64 * 2048
"""Of a step with full rows: about as many as LLaVA's 128 samples of stage 2 have."""
SAMPLES = (128, 256)
"""Per step, of LLaVA's stage 2 and stage 1."""
SEED = 0
_FUNCTIONS = 12


@dataclasses.dataclass(frozen=True)
class Filled:
    """The filled part of all positions of a run of one epoch, of one mix at one length."""

    mix: str
    length: int
    mean: float
    """Positions of a sample, after the cut."""
    rows: float
    """With full rows: `batch.rows`."""
    samples: dict[int, float]
    """With so many samples in every step: `batch.samples`."""
    unlimited: float
    """By the same algorithm, where all samples of the epoch can meet in a row."""
    bound: float
    """No packing fills more."""

    def faults(self) -> list[str]:
        """What of the figures to reach does not hold."""
        if self.mix not in REACHED_FOR:
            return []
        least = max(LEAST[self.length], self.unlimited - MOST_BELOW_UNLIMITED)
        if self.rows >= least:
            return []
        return [f"{self.mix} at {self.length}: {self.rows:.4f} filled, expected {least:.4f}"]


def measured(samples: int) -> Iterator[Filled]:
    """Every mix at every length."""
    for name, mix in MIXES.items():
        whole = mix(samples, np.random.default_rng(SEED))
        for length in LEAST:
            yield filled(name, whole.stretched(length), length)


def filled(mix: str, lengths: Lengths, length: int) -> Filled:
    """What the planner makes of these samples, once around."""
    sizes, count = lengths.tokens, len(lengths.tokens)
    mixture = Mixture([range(count)], [1.0], SEED)

    def planned(rows: int | None = None, samples: int | None = None) -> float:
        batch = BatchConfig(rows=rows, samples=samples, length=length)
        return RunPlan(mixture, lengths, batch, epochs=1).fill

    unlimited = best_fit_decreasing(sizes, lengths.images, length, None)
    total = int(sizes.sum(dtype=np.int64))
    return Filled(
        mix,
        length,
        mean=total / count,
        rows=planned(rows=POSITIONS // length),
        samples={number: planned(samples=number) for number in SAMPLES if number <= count},
        unlimited=total / (len(unlimited) * length),
        bound=total / (least_rows(sizes, length) * length),
    )


def least_rows(sizes: Int32[np.ndarray, " n"], length: int) -> int:
    """Rows that no packing of these samples can do without.

    Each sample is given a weight such that no row holds more than 1 of it (a dual feasible
    function), so that the sum over all samples is at most the number of rows. Of many such
    functions the largest sum is taken.

    Source: Fekete and Schepers, New classes of fast lower bounds for bin packing (2001).
    """
    counts = np.bincount(sizes, minlength=length + 1)
    places = np.flatnonzero(counts)
    most = 0.0
    for small in [0, *(size for size in places.tolist() if 2 * size <= length)]:
        # Samples that leave less than `small` fill a row, if all below `small` are let go.
        weights = np.where(places > length - small, length, np.where(places < small, 0, places))
        for parts in range(_FUNCTIONS):
            most = max(most, float(counts[places] @ _rounded(weights, parts, length)))
    return math.ceil(most - 1e-6)


def _rounded(weights: Num[np.ndarray, " n"], parts: int, length: int) -> Float[np.ndarray, " n"]:
    """The sizes over the length; with `parts` k, in whole k-ths, of which k + 1 do not fit."""
    if not parts:
        return weights / length
    scaled = (parts + 1) * weights
    return np.where(scaled % length, scaled // length / parts, weights / length)


def table(found: list[Filled]) -> str:
    """For a person."""
    numbers = found[0].samples
    head = ["mix", "length", "mean", "full rows", *(f"samples: {n}" for n in numbers)]
    lines = [[*head, "all together", "at most", "to reach"]]
    for one in found:
        least = f"{LEAST[one.length]:.2f}" if one.mix in REACHED_FOR else ""
        shares = [one.rows, *one.samples.values(), one.unlimited, one.bound]
        shown = [f"{share:.4f}" for share in shares]
        lines.append([one.mix, str(one.length), f"{one.mean:.0f}", *shown, least])
    widths = [max(map(len, column)) for column in zip(*lines)]
    first, *others = widths
    return "\n".join(
        "  ".join([f"{name:<{first}}", *(f"{cell:>{w}}" for cell, w in zip(cells, others))])
        for name, *cells in lines
    )
