"""What a modelled time means for a run."""

import dataclasses

import pytest
from planning_programs import CHIP

from astrollava_jax.planning.roofline import estimate, mfu, reliance
from astrollava_jax.planning.schedule import Modelled
from astrollava_jax.planning.topologies import CHIPS

STEP = Modelled(0.5, 0.3, {"all-gather": 0.1, "all-reduce": 0.05}, 0.05, {})
"""A second, of which a fifth is waited for."""


def test_the_parts_of_a_step_make_its_time():
    assert (STEP.seconds, STEP.busy_seconds) == pytest.approx((1.0, 0.8))


def test_a_run_takes_its_steps_and_is_as_useful_as_its_flops_say():
    """Four chips of a TFLOP/s each."""
    found = estimate(STEP, useful_flops=2e12, samples=128, steps=7200, chips=4, chip=CHIP)
    assert found.mfu == pytest.approx(0.5)
    assert found.mfu_without_waiting == pytest.approx(0.625)
    assert (found.samples_per_second, found.hours) == pytest.approx((128, 2))
    assert found.reliance == reliance(CHIP)


def test_no_chip_does_more_than_it_can():
    assert mfu(4e12, 1.0, 4, CHIP) == 1
    with pytest.raises(ValueError, match=r"4\.1e\+12 useful FLOPs do not fit into 1 s of 4 x"):
        mfu(4.1e12, 1.0, 4, CHIP)
    with pytest.raises(ValueError, match="parts without a time"):
        mfu(1.0, 0.0, 4, CHIP)
    waits = dataclasses.replace(STEP, compute_seconds=0.0)
    with pytest.raises(ValueError, match=r"into 0\.3 s"):
        estimate(waits, useful_flops=1.5e12, samples=1, steps=1, chips=4, chip=CHIP)


def test_a_modelled_time_says_how_far_it_was_checked():
    assert "11% to 23% too pessimistic on the two published runs" in reliance(CHIPS["v5e"])
    for chip in ("v4", "v5p", "v6e"):
        assert "uncalibrated on this chip, for ranking only" in reliance(CHIPS[chip])
    assert all("modelled, not measured" in reliance(chip) for chip in CHIPS.values())
