"""The loop: the order of events, readable in one screen."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax

from astrollava_jax.params import Params
from astrollava_jax.training.anomaly import GOOD
from astrollava_jax.training.preemption import Preempted, Stop
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.trace import annotated
from astrollava_jax.training.watchdog import Heart


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
    fault_kinds: Sequence[str] = ()
    """What each of them is."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What a hook is told after a step."""

    progress: Progress
    total_steps: int
    state: TrainState
    metrics: dict[str, float | int]
    delivery: Delivery
    seconds: float
    """From the end of the hooks before it to the step's end."""
    input_wait: float
    """Seconds of it in which the devices waited for input."""
    device_wait: float
    """Seconds of it in which the loop, which had handed over the step, waited for the devices."""
    rolled_back: int | None = None
    """The checkpoint that `state` was taken from, where the step's own led nowhere."""

    @property
    def last(self) -> bool:
        """Whether the data has come to its end."""
        return self.progress.position == self.total_steps


Hook = Callable[[Event], None]
"""Something that happens after a step, by its own clock."""


class Diverged(ValueError):
    """Raised by a hook: the run cannot go on from the state of this step."""


Recover = Callable[[Event, Diverged], Event]
"""Gives the event a state from which the run can go on, or raises what it was told."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What surrounds the steps of a run: what follows each, who watches it, who may end it."""

    hooks: Sequence[Hook]
    """Called after each step, in this order."""
    recover: Recover
    save: Hook
    """Saves now, unless it is done, and returns when it stands on the disk."""
    heart: Heart
    stop: Stop
    step: Callable[[int], AbstractContextManager[None]] = annotated
    """Surrounds the step of a number, from when its input is there until its metrics are."""

    def told(self, event: Event) -> Event:
        """Calls all hooks; the event as the last one saw it.

        Where a hook says that the state leads nowhere, it and those after it are told of the state
        that was recovered.
        """
        return self._told(event, self.hooks)

    def saved(self, event: Event) -> Event:
        """Saves now; the event with what was saved."""
        return self._told(event, [self.save])

    def saved_alone(self, event: Event | None) -> None:
        """Saves before an error ends the run, if there is something to save.

        With several processes the others do not know of it, and a save takes all of them.
        """
        if event is not None and jax.process_count() == 1:
            self.saved(event)

    def _told(self, event: Event, hooks: Sequence[Hook]) -> Event:
        waiting = list(hooks)
        while waiting:
            try:
                waiting[0](event)
            except Diverged as error:
                event = self.recover(event, error)
            else:
                waiting.pop(0)
        return event


def train(
    step: Callable[[TrainState, Params, Any], tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    frozen: Params,
    deliveries: Iterator[Delivery],
    progress: Progress,
    total_steps: int,
    around: Surroundings,
) -> tuple[TrainState, Progress]:
    """Runs the remaining steps; after each, calls every hook in the order of the list.

    Data is never given twice: also after `recover` the run goes on with the next delivery.

    Where the input ends with an error, what was learned so far is saved before it is raised.

    Raises:
        Preempted: if the run is asked to stop; the step is finished, and `save` has saved it.
    """
    heart, stop = around.heart, around.stop
    ended, event = time.perf_counter(), None
    while progress.position < total_steps:
        heart.beat("input", f"of step {progress.step + 1}")
        try:
            delivery = next(deliveries)
        except Exception:
            around.saved_alone(event)
            raise
        arrived = time.perf_counter()
        heart.beat("step", f"{progress.step + 1}")
        with around.step(progress.step + 1):
            state, metrics = step(state, frozen, delivery.batch)
            handed_over = time.perf_counter()
            metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
            now = time.perf_counter()
        event = Event(
            progress=progress.after(bad=metrics["bad"] != GOOD, skipped=len(delivery.faults)),
            total_steps=total_steps,
            state=state,
            metrics=metrics,
            delivery=delivery,
            seconds=now - ended,
            input_wait=arrived - ended,
            device_wait=now - handed_over,
        )
        stop.requested()
        try:
            event = around.told(event)
        except OSError:  # the log's disk, perhaps; the state is whole
            if stop.reason is not None:
                around.saved_alone(event)
            raise
        if stop.reason is not None and not event.last:
            event = around.saved(event)
            raise Preempted(
                f"{stop.reason}: stopped after step {event.progress.step} of {total_steps}, which "
                "is saved; the same command goes on"
            )
        state, progress = event.state, event.progress
        ended = time.perf_counter()
    return state, progress
