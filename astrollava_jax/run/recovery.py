"""Back to a checkpoint, past the data that led nowhere."""

import dataclasses
from collections.abc import Callable

import jax

from astrollava_jax.training.checkpoint import Checkpoints, Restored
from astrollava_jax.training.loop import Diverged, Event, Hook
from astrollava_jax.training.state import TrainState
from astrollava_jax.training.watchdog import Heart

SHOWN_RECORDS = 10


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Gives a run that cannot go on the state of a checkpoint.

    The step and the position in the data stay what they are: the batches between the checkpoint
    and here are not seen again. Only the count of updates, which is the schedule's clock, goes
    back. The checkpoint is the newest one; where `max_in_row` bad steps have led back already, and
    no good one has come since, it is one with fewer updates than now.
    """

    checkpoints: Checkpoints
    like: TrainState
    """Shapes and layout of the state."""
    max_in_row: int
    records: Callable[[int], list[str]]
    """The names of a step's records."""
    log: Hook
    """What is told of the step if the run ends here."""
    tell: Callable[[str], None]
    heart: Heart
    """To verify and read a checkpoint takes as long as it takes."""

    def __call__(self, event: Event, error: Diverged) -> Event:
        """The event with the state of a checkpoint.

        Raises:
            Diverged: if there is none to go back to.
        """
        now = event.progress
        again = now.bad_in_row > self.max_in_row
        self.tell(f"ROLLING BACK: {error}")
        self.heart.beat("checkpoint", "going back to one")
        self.checkpoints.wait()
        jax.tree.map(lambda array: array.delete(), event.state)  # two would not fit
        found = self._newest(now.updates - again)
        if found is None:
            self.log(event)
            raise Diverged(self._no_way_out(event, error)) from error
        state, updates = found.state, found.progress.updates
        self.tell(
            f"ROLLED BACK to checkpoint {found.step}, of {updates} updates ({now.updates} before); "
            f"the run goes on past the data of step {now.step}"
        )
        progress = dataclasses.replace(now, updates=updates)
        return dataclasses.replace(event, state=state, progress=progress, rolled_back=found.step)

    def _newest(self, most_updates: int) -> Restored | None:
        """The newest checkpoint of at most so many updates; those passed over are set aside."""
        before: int | None = None
        while (found := self.checkpoints.restore_newest(self.like, before=before)) is not None:
            if found.progress.updates <= most_updates:
                return found
            before = found.step
            del found  # before the next one comes
            self.checkpoints.set_aside(before, "diverged")
            self.tell(f"checkpoint {before} led nowhere: it is set aside")
        return None

    def _no_way_out(self, event: Event, error: Diverged) -> str:
        names = self.records(event.progress.position - 1)
        more = len(names) - SHOWN_RECORDS
        return (
            f"{error}. No checkpoint is left to go back to, so that the run ends here; nothing was "
            "learned from bad steps. Records of this one: "
            + ", ".join(names[:SHOWN_RECORDS])
            + (f" and {more} more" if more > 0 else "")
            + "; `bad` in log.jsonl names those of each. Where the numbers are not finite: look at "
            "these records and at the weights that the run began with, lower peak_lr, or set "
            "optimizer.clip_norm. Where they are spikes: do the same, or raise "
            "bad_numbers.spike.sigma, or set bad_numbers.spike to null, and start the run again"
        )
