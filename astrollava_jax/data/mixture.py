"""Which records an epoch holds, and in what order: a function of the seed and the epoch alone."""

import itertools
import math
from collections.abc import Sequence, Sized
from typing import Literal

import numpy as np
from jaxtyping import Int

from astrollava_jax.config import config
from astrollava_jax.data.image import Mode

TemplateName = Literal[
    "plain",
    "vicuna_v1",
    "llava_v1",
    "llama_2",
    "mistral_instruct",
    "chatml",
    "llama_3",
    "model",
]
"""The templates of `chat`, and the one that the model's own directory states."""


@config
class DataConfig:
    """One set of a run's mixture."""

    records: str
    """Folder of the record set."""
    weight: float = 1.0
    """Passes over the set per epoch; 0.5 takes a random half of it, another one in each epoch."""
    template: TemplateName
    """How a record is put into words."""
    image: Mode = "pad"
    """How a picture is made square; `anyres` cuts it into tiles, if the model has a grid."""

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"weight is {self.weight}, expected a number above 0; leave the set out instead"
            )


class Mixture:
    """Some sets as one. A record's id is its number in all of them, the sets laid end to end.

    Args:
        sources: the sets; only their lengths are used.
        weights: passes over each set per epoch.
        seed: of the order.
        shuffle: False takes the records as they stand, as evaluation does.
    """

    def __init__(
        self,
        sources: Sequence[Sized],
        weights: Sequence[float],
        seed: int = 0,
        *,
        shuffle: bool = True,
    ):
        if len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sets of records, and {len(weights)} weights")
        self._starts = list(itertools.accumulate((len(source) for source in sources), initial=0))
        self._weights = tuple(weights)
        self._seed = seed
        self._shuffle = shuffle
        idle = [n for n in range(len(weights)) if not len(self._visits(n, 0))]
        if idle:
            raise ValueError(
                "expected every set to give records to an epoch, found none of "
                + ", ".join(f"data.{n} ({len(sources[n])} records x {weights[n]:g})" for n in idle)
                + ": give it more weight, or leave it out"
            )

    def __len__(self) -> int:
        """The number of different records, whatever their weights."""
        return self._starts[-1]

    def order(self, epoch: int) -> Int[np.ndarray, "n"]:
        """The ids of an epoch's records, in order. All epochs hold equally many."""
        parts = [self._visits(number, epoch) for number in range(len(self._weights))]
        ids = np.concatenate([np.zeros(0, np.int64), *parts])
        return ids[_permutation(len(ids), self._seed, epoch, 0)] if self._shuffle else ids

    def _visits(self, number: int, epoch: int) -> Int[np.ndarray, "n"]:
        """The ids that one set gives to an epoch, in the set's order."""
        start, stop = self._starts[number : number + 2]
        whole, rest = divmod(self._weights[number], 1.0)
        chosen = _permutation(stop - start, self._seed, epoch, 1 + number)
        chosen = np.sort(chosen[: round(rest * (stop - start))])
        ids = np.arange(start, stop, dtype=np.int64)
        return np.concatenate([np.tile(ids, int(whole)), start + chosen])


def _permutation(length: int, seed: int, epoch: int, purpose: int) -> Int[np.ndarray, "n"]:
    """A random order of `range(length)`, the same on every platform and NumPy version."""
    # NumPy keeps the raw stream of a bit generator stable, but not what `Generator` makes of it.
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch, purpose)))
    return np.argsort(bits.random_raw(length), kind="stable")
