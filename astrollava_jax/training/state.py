"""TrainState: everything that a step changes; Progress: where a run stands."""

import dataclasses
from typing import NamedTuple

from astrollava_jax.params import Params
from astrollava_jax.training.anomaly import History
from astrollava_jax.training.optimizer import AdamState


class TrainState(NamedTuple):
    """What lives on the devices and changes: donated to each step."""

    trainable: Params
    """Float32 master weights by address."""
    optimizer: AdamState
    history: History | None = None
    """Of the steps before, where spikes are looked for."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands; a step may be passed over or leave no update, so each has its count."""

    step: int = 0
    """Steps done."""
    position: int = 0
    """Steps of the data plan consumed: the next batch is `position`."""
    updates: int = 0
    """Optimizer updates made: the schedule's clock."""
    skipped: int = 0
    """Records that could not be read; their loss was off."""
    bad: int = 0
    """Steps from which nothing was learned, their numbers being bad."""
    bad_in_row: int = 0
    """Of these, the ones since the last update."""

    def after(self, *, bad: bool, skipped: int) -> "Progress":
        """Where a run stands one step later."""
        return Progress(
            step=self.step + 1,
            position=self.position + 1,
            updates=self.updates + (not bad),
            skipped=self.skipped + skipped,
            bad=self.bad + bad,
            bad_in_row=self.bad_in_row + 1 if bad else 0,
        )
