"""What a modelled step time means for a run, and how far it is to be believed."""

import dataclasses

from astrollava_jax.planning.schedule import Modelled
from astrollava_jax.planning.topologies import Chip

CHECKED = {"TPU v5 lite": (0.11, 0.23)}
"""Chip -> by how much the modelled MFU was too low, at least and at most, on the published runs
that the rules of the model were checked against. There were two, both on 256 chips of v5e, and it
got their order wrong."""


def reliance(chip: Chip) -> str:
    """What must stand beside every modelled time."""
    if chip.name in CHECKED:
        least, most = CHECKED[chip.name]
        return (
            f"modelled, not measured: {least:.0%} to {most:.0%} too pessimistic on the two "
            "published runs that its rules were checked against"
        )
    return "modelled, not measured; uncalibrated on this chip, for ranking only"


def mfu(useful_flops: float, seconds: float, chips: int, chip: Chip) -> float:
    """The part of what the chips could do that is useful work, between 0 and 1.

    Args:
        useful_flops: of a step, over all chips; rematerialisation is none.
        seconds: of the step.
        chips: how many.
        chip: of which kind.

    Raises:
        ValueError: if it is more than the chips can do, so that some time is missing.
    """
    possible = chips * chip.bf16_flops * seconds
    if useful_flops > possible:
        raise ValueError(
            f"{useful_flops:.4g} useful FLOPs do not fit into {seconds:.4g} s of {chips} x "
            f"{chip.name}, which could do {possible:.4g}: the program has parts without a time; "
            "use no figure of this model"
        )
    return useful_flops / possible


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run would look like if its steps took their modelled time."""

    step_seconds: float
    mfu: float
    mfu_without_waiting: float
    """If nothing were ever waited for, neither other chips nor copies."""
    samples_per_second: float
    hours: float | None
    """Of the run, steps alone; None where it is not known how many they are."""
    reliance: str
    """Must stand beside all of it."""


def estimate(
    step: Modelled, *, useful_flops: float, samples: float | int, steps: int | None, chips: int,
    chip: Chip,
) -> Estimate:  # fmt: skip
    """What the modelled step means.

    Args:
        step: its time.
        useful_flops: of a step, over all chips.
        samples: of a step, over all chips.
        steps: of the run, if that is known.
        chips: how many.
        chip: of which kind.

    Raises:
        ValueError: if the time is less than the chips need for the useful work alone.
    """
    return Estimate(
        step_seconds=step.seconds,
        mfu=mfu(useful_flops, step.seconds, chips, chip),
        mfu_without_waiting=mfu(useful_flops, step.busy_seconds, chips, chip),
        samples_per_second=samples / step.seconds,
        hours=None if steps is None else steps * step.seconds / 3600,
        reliance=reliance(chip),
    )
