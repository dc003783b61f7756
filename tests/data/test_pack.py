import dataclasses

import numpy as np
import pytest
from numpy.typing import ArrayLike

from astrollava_jax import config
from astrollava_jax.bench.length_mixes import astrollava
from astrollava_jax.data import chat
from astrollava_jax.data.best_fit import best_fit_decreasing
from astrollava_jax.data.lengths import Lengths
from astrollava_jax.data.mixture import DataConfig, Mixture, TemplateName
from astrollava_jax.data.pack import BatchConfig, RunPlan


def lengths(tokens, images: ArrayLike = 1, learned: ArrayLike = 1) -> Lengths:
    def column(values):
        return np.broadcast_to(values, len(tokens)).astype(np.int32)

    return Lengths(column(tokens), column(images), column(learned), column(tokens))


def mixture(*sizes: int, weights=None, **options) -> Mixture:
    return Mixture([range(size) for size in sizes], weights or [1.0] * len(sizes), **options)


# Order


def test_each_epoch_holds_every_record_once_in_an_order_of_its_own():
    orders = [mixture(20, 30, seed=5).order(epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], mixture(20, 30, seed=6).order(0))
    np.testing.assert_array_equal(orders[2], mixture(20, 30, seed=5).order(2))


def test_the_order_is_that_of_philox_and_stays_so():
    # A run that is resumed by another version of NumPy, on another machine, must find this.
    assert mixture(10, seed=0).order(0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


def test_a_weight_is_the_number_of_passes_per_epoch():
    sets = mixture(10, 7, 100, weights=[2.0, 1.0, 0.25], seed=1)
    first, second = (np.bincount(sets.order(epoch), minlength=117) for epoch in range(2))
    assert first[:10].tolist() == [2] * 10 and first[10:17].tolist() == [1] * 7
    assert sorted(first[17:]) == [0] * 75 + [1] * 25
    assert first.sum() == second.sum() and not np.array_equal(first, second)


def test_without_shuffling_records_come_as_they_stand():
    assert mixture(3, 2, shuffle=False).order(4).tolist() == [0, 1, 2, 3, 4]


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"found none of data\.0 \("):
        mixture(1, weights=[0.25])
    with pytest.raises(config.ConfigError, match="weight is -1"):
        config.parse(DataConfig, {"records": "sky", "template": "plain", "weight": -1})


def test_every_template_can_be_named_in_a_config():
    assert set(TemplateName.__args__) == set(chat.TEMPLATES)


# Rows


def test_the_longest_sample_goes_first_and_the_fullest_row_takes_the_next():
    # 6 | 5 | 6+3 (1 left) | 5+3 (2 left) | 5+3+2
    rows = fill([3, 6, 2, 5, 3])
    assert rows == [[1, 0], [3, 4, 2]]


def test_a_row_holds_no_more_images_than_it_may():
    assert fill([2, 2, 2, 2]) == [[0, 1, 2, 3]]
    assert fill([2, 2, 2, 2], images=[1, 1, 1, 0], max_images=2) == [[0, 1, 3], [2]]


def fill(tokens, images=None, max_images=None) -> list[list[int]]:
    images = np.array(images or [1] * len(tokens), np.int32)
    return best_fit_decreasing(np.array(tokens, np.int32), images, 10, max_images)


def test_consecutive_steps_of_full_rows_are_alike():
    # Rows leave the packing ordered by length; a run must not see long samples first, then short.
    measured = astrollava(4096, np.random.default_rng(0))
    plan = RunPlan(mixture(4096), measured, BatchConfig(rows=100, length=2048), epochs=1)
    means = [measured.tokens[plan.records(step)].mean() for step in range(plan.total_steps - 1)]
    assert np.ptp(means) < 40  # of about 830; with their order left it would be 360


# Steps


def test_samples_that_are_refused_take_no_place_in_a_row():
    """They have no positions, and all go where the least room is left."""
    measured = lengths([60] * 3 + [0] * 20, images=0, learned=[1] * 3 + [0] * 20)
    plan = RunPlan(mixture(23), measured, BatchConfig(rows=4, length=64), epochs=1)
    assert max(len(row) for row in plan[0]) > 20
    assert plan.shape.samples == 1


@pytest.mark.parametrize(
    "batch",
    [
        BatchConfig(samples=16, length=64),
        BatchConfig(samples=16, length=64, packing=False),
        BatchConfig(samples=16, length=64, max_images=2),
        BatchConfig(rows=4, length=64),
        BatchConfig(rows=4, length=64, packing=False),
    ],
)
def test_what_every_plan_keeps(batch):
    rng = np.random.default_rng(0)
    measured = lengths(rng.integers(5, 60, 150), rng.integers(0, 3, 150), rng.integers(1, 5, 150))
    plan = RunPlan(mixture(100, 50, seed=3), measured, batch, epochs=2, multiple=2)

    for epoch in range(2):
        steps = [step for step in range(plan.total_steps) if plan.locate(step)[0] == epoch]
        assert len(steps) == plan.steps_per_epoch[epoch]
        assert sorted(id for step in steps for id in plan.records(step)) == list(range(150))
    for step in range(plan.total_steps):
        rows = plan[step]
        slots = sorted((slot for row in rows for slot in row), key=lambda slot: slot.sample)
        assert len(rows) == plan.rows and plan.rows % 2 == 0
        assert [slot.sample for slot in slots] == list(range(plan.samples(step)))
        assert [slot.record for slot in slots] == plan.records(step)
        for row in rows:
            assert sum(slot.tokens for slot in row) <= 64
            assert sum(slot.images for slot in row) <= min(
                plan.shape.images, batch.max_images or 99
            )
            assert sum(slot.learned for slot in row) <= plan.shape.learned
            assert len(row) <= plan.shape.samples
            assert batch.packing or len(row) <= 1
    assert plan.shape.samples == max(len(row) for step in plan for row in step)
    filled = 2 * measured.tokens.sum() / (plan.total_steps * plan.rows * 64)
    assert plan.fill == pytest.approx(filled)
    assert np.mean([plan.filled(step) for step in range(len(plan))]) == pytest.approx(filled)


def test_a_step_takes_its_samples_in_the_order_of_the_epoch():
    order = mixture(150, seed=3).order(0)
    tokens = np.random.default_rng(0).integers(5, 60, 150)
    plan = RunPlan(
        mixture(150, seed=3), lengths(tokens), BatchConfig(samples=16, length=64), epochs=1
    )
    assert plan.records(2) == order[32:48].tolist()
    assert plan.samples(8) == 16 and plan.samples(9) == 150 - 9 * 16
    assert plan.steps_per_epoch == (10,) and plan.total_steps == 10


def test_rows_are_as_many_as_the_fullest_step_needs():
    # Two samples a step; the third step needs two rows, the others one.
    measured = lengths([4, 4, 5, 5, 9, 9, 3, 3])
    batch = BatchConfig(samples=2, length=10)
    plan = RunPlan(mixture(8, shuffle=False), measured, batch, epochs=1)
    assert plan.rows == 2 and plan.fill == pytest.approx(42 / 80)
    assert [len([row for row in plan[step] if row]) for step in range(4)] == [1, 1, 2, 1]
    assert RunPlan(mixture(8, shuffle=False), measured, batch, epochs=1, multiple=8).rows == 8


def test_a_run_of_some_steps_is_the_beginning_of_a_longer_one():
    batch = BatchConfig(rows=4, length=64)
    measured = lengths(np.random.default_rng(0).integers(5, 60, 50))
    long = RunPlan(mixture(50), measured, batch, epochs=3)
    per_epoch = long.steps_per_epoch[0]
    short = RunPlan(mixture(50), measured, batch, steps=per_epoch + 2)
    assert short.total_steps == per_epoch + 2 and short.steps_per_epoch == (per_epoch, 2)
    assert [short[step] for step in range(len(short))] == [long[step] for step in range(len(short))]
    assert short.locate(per_epoch + 1) == (1, 1)


def test_a_mesh_changes_no_sample_of_any_step():
    measured = lengths(np.random.default_rng(0).integers(5, 60, 50))
    batch = BatchConfig(samples=8, length=64)
    one, many = (RunPlan(mixture(50), measured, batch, epochs=1, multiple=m) for m in (1, 16))
    assert [one.records(step) for step in range(7)] == [many.records(step) for step in range(7)]


def test_longer_rows_are_foretold_of_samples_that_were_cut():
    measured = dataclasses.replace(lengths([10, 8]), whole=np.array([15, 8], np.int32))
    assert measured.num_cut == 1
    assert measured.stretched(12).tokens.tolist() == [12, 8]
    assert measured.stretched(20).tokens.tolist() == [15, 8]


def test_what_cannot_be_planned_is_refused():
    measured = lengths([5, 5, 5], images=[1, 3, 4])
    with pytest.raises(
        ValueError, match=r"max_images is 2, but 2 samples hold more images, up to 4"
    ):
        RunPlan(mixture(3), measured, BatchConfig(rows=1, length=9, max_images=2), epochs=1)
    with pytest.raises(ValueError, match=r"rows is 3, .* multiple\s+of 2"):
        RunPlan(mixture(3), measured, BatchConfig(rows=3, length=9), epochs=1, multiple=2)
    with pytest.raises(ValueError, match="exactly one"):
        RunPlan(mixture(3), measured, BatchConfig(rows=3, length=9))
    with pytest.raises(config.ConfigError, match="samples is 4 and rows is 4"):
        config.parse(BatchConfig, {"samples": 4, "rows": 4, "length": 9})
    with pytest.raises(config.ConfigError, match="length is 0"):
        config.parse(BatchConfig, {"samples": 4, "length": 0})
