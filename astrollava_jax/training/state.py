"""TrainState: everything that a step changes; Progress: where a run stands."""

import dataclasses
from typing import NamedTuple

from astrollava_jax.params import Params
from astrollava_jax.training.optimizer import AdamState


class TrainState(NamedTuple):
    """What lives on the devices and changes: donated to each step."""

    trainable: Params
    """Float32 master weights by address."""
    optimizer: AdamState


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
