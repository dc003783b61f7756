"""The loop: the order of events, readable in one screen."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from astrollava_jax.params import Params
from astrollava_jax.training.state import Progress, TrainState


@dataclasses.dataclass(frozen=True)
class Delivery:
    """One step's input: the batch on the devices, and facts about it."""

    batch: Any
    """Batch of arrays [A, rows, ...]."""
    samples: int
    tokens: int
    """Filled positions."""
    attended: int
    """Pairs (query, key) that attention must see: the sum of l (l + 1) / 2 over samples."""
    filled: float
    """Part of all positions, empty rows counted, that holds something."""
    faults: Sequence[str]
    """Records that could not be read, each with its reason; their loss is off."""
    fault_kinds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many of them are of which kind."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What a hook is told after a step."""

    progress: Progress
    total_steps: int
    state: TrainState
    metrics: dict[str, float]
    delivery: Delivery
    seconds: float
    """From the end of the hooks before it to the step's end."""
    input_wait: float
    """Seconds of it in which the devices waited for input."""

    @property
    def last(self) -> bool:
        """Whether the run is complete."""
        return self.progress.step == self.total_steps


Hook = Callable[[Event], None]
"""Something that happens after a step, by its own clock."""


def train(
    step: Callable[[TrainState, Params, Any], tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    frozen: Params,
    deliveries: Iterator[Delivery],
    hooks: Sequence[Hook],
    progress: Progress,
    total_steps: int,
) -> tuple[TrainState, Progress]:
    """Runs the remaining steps; after each, calls every hook in the order of the list."""
    ended = time.perf_counter()
    while progress.step < total_steps:
        delivery = next(deliveries)
        arrived = time.perf_counter()
        state, metrics = step(state, frozen, delivery.batch)
        metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        progress = Progress(
            step=progress.step + 1,
            position=progress.position + 1,
            updates=progress.updates + 1,
            skipped=progress.skipped + len(delivery.faults),
        )
        event = Event(
            progress=progress,
            total_steps=total_steps,
            state=state,
            metrics=metrics,
            delivery=delivery,
            seconds=now - ended,
            input_wait=arrived - ended,
        )
        for hook in hooks:
            hook(event)
        ended = time.perf_counter()
    return state, progress
