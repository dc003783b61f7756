"""What is asked of `plan` besides the run. Light: a mistake in it is told before JAX is loaded."""

import dataclasses
from collections.abc import Sequence

LOCAL = "local"
"""The devices of this machine, by the name that stands for a topology's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command line.

    Raises:
        ValueError: if they do not go together; all of it at once.
    """

    topology: str
    """The machine's name, or `local`."""
    shape: str | None = None
    """The model's published name, in place of the directories that the run names."""
    rows_per_chip: int | None = None
    """A step has so many rows on each chip, whatever the batch of the run."""
    as_json: bool = False
    """Print JSON in place of tables."""
    estimate: bool = False
    """Model the step's time too."""
    axes: Sequence[str] | None = None
    """Take several settings, by the values of some axes: see `sweep_settings`."""
    measure: int | None = None
    """Take so many steps of the run, or of each setting, and time them."""
    trace: str | None = None
    """A folder for a trace of one step more."""

    def __post_init__(self):
        if faults := [*self._faults()]:
            raise ValueError("\n".join(faults))

    def _faults(self):
        if self.rows_per_chip is not None and self.rows_per_chip < 1:
            yield f"--rows-per-chip is {self.rows_per_chip}, expected at least 1"
        if self.measure is None:
            if self.trace is not None:
                yield "--trace: only steps that are taken can be traced: add --measure N"
            return
        if self.measure < 1:
            yield f"--measure is {self.measure}, expected at least 1 step"
        if self.topology != LOCAL:
            yield (
                f"--measure: steps are taken on the devices of this machine, not on "
                f"{self.topology}: say --topology {LOCAL}"
            )
        if self.estimate:
            yield "--estimate: a time that is measured is not modelled: leave out one of the two"
