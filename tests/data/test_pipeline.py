import os

import numpy as np
import pytest
import small_set

from astrollava_jax.data import lengths as lengths_module
from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.lengths import measure
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set

BATCH = BatchConfig(samples=8, length=16)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    return small_set.reader(tmp_path_factory.mktemp("pipeline") / "sky")


@pytest.fixture(scope="module")
def plan(reader, tmp_path_factory) -> RunPlan:
    """Two epochs of 40 records, 8 a step."""
    mixture = Mixture([part.source for part in reader.parts], [1.0], seed=1)
    lengths = measure(reader, tmp_path_factory.mktemp("plan"))
    return RunPlan(mixture, lengths, BATCH, epochs=2, multiple=2)


@pytest.fixture(scope="module")
def whole(reader, plan) -> list:
    """The run as threads of this process make it."""
    return steps(Pipeline(plan, reader))


def steps(pipeline: Pipeline, start: int = 0) -> list:
    with pipeline.batches(start) as batches:
        return list(batches)


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert (one.records, one.faults, one.filled) == (other.records, other.faults, other.filled)
        for field, value in zip(one.batch, other.batch):
            np.testing.assert_array_equal(field, value)


# The run


def test_a_run_holds_what_was_planned(plan, whole):
    examples = {example.id: example for example in small_set.examples(40)}
    assert len(whole) == plan.total_steps == 10
    for epoch in (whole[:5], whole[5:]):
        assert sorted(name for step in epoch for name in step.records) == sorted(examples)
    for number, step in enumerate(whole):
        assert step.records == [f"sky-{record}" for record in plan.records(number)]
        assert step.batch.tokens.shape == (plan.rows, 16)
        assert step.batch.images.shape == (plan.rows, plan.shape.images, 4, 4, 3)
        assert step.filled == pytest.approx(np.mean(step.batch.segment_ids > 0))
        for sample, name in enumerate(step.records):
            words = len(examples[name].caption.split())
            assert np.count_nonzero(step.batch.learned_sample == sample) == words


def test_every_word_is_learned_where_it_belongs(reader, whole):
    examples = {example.id: example for example in small_set.examples(40)}
    for step in whole:
        for sample, name in enumerate(step.records):
            row, slot = np.nonzero(step.batch.learned_sample == sample)
            targets = step.batch.targets[row, step.batch.learned_index[row, slot]]
            assert targets.tolist() == reader.tokenizer.encode(examples[name].caption)[0]


def test_every_image_position_sees_its_own_picture(whole):
    for step in whole:
        features = np.repeat(step.batch.images[..., 0, 0, 0], small_set.FACTS.tokens, axis=1)
        number = np.array([int(name.removeprefix("sky-")) for name in step.records])
        for row, position in zip(*np.nonzero(step.batch.feature_index >= 0)):
            segment = step.batch.segment_ids[row] == step.batch.segment_ids[row, position]
            samples = step.batch.learned_sample[row][segment[step.batch.learned_index[row]]]
            first = np.flatnonzero(segment & (step.batch.feature_index[row] >= 0))[0]
            expected = number[samples[0]] if position < first + 2 else 7
            assert features[row, step.batch.feature_index[row, position]] == expected


def test_a_run_that_starts_later_goes_on_as_the_whole(reader, plan, whole):
    assert_equal(steps(Pipeline(plan, reader), start=3), whole[3:])
    assert steps(Pipeline(plan, reader), start=10) == []


def test_workers_change_nothing(reader, plan, whole):
    assert_equal(steps(Pipeline(plan, reader, workers=1)), whole)
    assert_equal(steps(Pipeline(plan, reader, workers=2), start=2), whole[2:])


def test_hosts_share_the_rows_of_each_step(reader, plan, whole):
    halves = [steps(Pipeline(plan, reader, parts=[i], of=2)) for i in range(2)]
    for one, other, both in zip(*halves, whole):
        for first, second, all_rows in zip(one.batch, other.batch, both.batch):
            np.testing.assert_array_equal(np.concatenate([first, second]), all_rows)
        assert sorted(one.records + other.records) == sorted(both.records)
    with pytest.raises(ValueError, match=f"{plan.rows} rows, which 5 parts"):
        Pipeline(plan, reader, of=5)


def test_a_step_that_needs_fewer_rows_is_filled_with_empty_ones(reader, tmp_path):
    mixture = Mixture([part.source for part in reader.parts], [1.0])
    batch = BatchConfig(samples=32, length=16, packing=False)
    plan = RunPlan(mixture, measure(reader, tmp_path), batch, epochs=1)
    full, rest = steps(Pipeline(plan, reader))
    assert len(full.records) == 32 and len(rest.records) == 8
    assert not rest.batch.segment_ids[8:].any() and (rest.batch.learned_index[8:] == -1).all()
    assert (rest.batch.feature_index[8:] == -1).all() and not rest.batch.images[8:].any()


def test_faults_come_with_their_step(tmp_path):
    reader = small_set.reader(tmp_path / "sky", count=8)
    lengths = measure(reader, tmp_path)
    damage(reader, at=40)  # in the first record
    mixture = Mixture([part.source for part in reader.parts], [1.0], shuffle=False)
    plan = RunPlan(mixture, lengths, BatchConfig(samples=4, length=16), epochs=1)
    first, second = steps(Pipeline(plan, reader))
    assert [fault.where for fault in first.faults] == [reader.where(0)] and not second.faults
    assert first.records == [reader.where(0), "sky-1", "sky-2", "sky-3"]
    assert set(first.batch.learned_sample.ravel().tolist()) == {-1, 1, 2, 3}


# Lengths


def test_lengths_are_measured_once(reader, tmp_path, monkeypatch):
    found = measure(reader, tmp_path)
    captions = [len(example.caption.split()) for example in small_set.examples(40)]
    images = [len(example.images) for example in small_set.examples(40)]
    assert found.learned.tolist() == captions and found.images.tolist() == images
    assert found.tokens.tolist() == [1 + 2 * i + c for i, c in zip(images, captions)]

    monkeypatch.setattr(Reader, "words", None)
    np.testing.assert_array_equal(measure(reader, tmp_path).tokens, found.tokens)


def test_lengths_are_measured_again_where_they_may_differ(reader, tmp_path):
    measure(reader, tmp_path)
    short = Reader(reader.parts, reader.tokenizer, reader.facts, length=8)
    other = Reader([Part(reader.parts[0].source, "vicuna_v1")], reader.tokenizer, reader.facts, 64)
    assert measure(short, tmp_path).num_cut > 0
    assert measure(other, tmp_path).tokens.min() > 30
    assert len(list(tmp_path.iterdir())) == 3


def test_lengths_measured_in_parallel_are_the_same(reader, tmp_path, monkeypatch):
    found = measure(reader, tmp_path / "one")
    monkeypatch.setattr(lengths_module, "PARALLEL_FROM", 10)
    monkeypatch.setattr(lengths_module, "_CHUNK", 7)
    parallel = measure(reader, tmp_path / "two", workers=2, show=True)
    for name in ("tokens", "images", "learned", "whole"):
        np.testing.assert_array_equal(getattr(parallel, name), getattr(found, name))


def test_a_sample_without_anything_to_learn_is_named(tmp_path):
    examples = [Example(id=f"mute-{i}", images=(small_set.picture(1),)) for i in range(12)]
    reader = written(tmp_path, Example(id="star", caption="a star"), *examples)
    with pytest.raises(ValueError, match="12 of 13 samples have no learned token") as error:
        measure(reader, tmp_path / "plan", allow_unlearned=11)
    assert "mute-9" in str(error.value) and "mute-10" not in str(error.value)
    assert measure(reader, tmp_path / "plan", allow_unlearned=12).learned.tolist() == [2] + [0] * 12


def test_a_sample_whose_answer_is_cut_away_is_named(tmp_path):
    pictures = (small_set.picture(1),) * 9
    reader = written(tmp_path, Example(id="long", images=pictures, caption="a star"))
    with pytest.raises(ValueError, match=r"'long': .* before position 16 of 21"):
        measure(reader, tmp_path / "plan")


def test_more_damaged_records_than_allowed_are_named_before_the_first_step(tmp_path):
    reader = written(tmp_path, *small_set.examples(8))
    damage(reader, at=40)
    with pytest.raises(ValueError, match="1 of 8 records cannot be read") as error:
        measure(reader, tmp_path / "plan", allow_unreadable=0.1)
    assert reader.where(0) in str(error.value)
    assert measure(reader, tmp_path / "plan", allow_unreadable=0.125).tokens[1:].all()


def test_a_sample_that_its_template_refuses_is_no_damage(tmp_path):
    turns = (Turn("human", "<image> <image>"), Turn("assistant", "two"))
    twice = Example(id="twice", images=(small_set.picture(1),), turns=turns, caption="a star")
    reader = written(tmp_path, twice, *small_set.examples(7))
    with pytest.raises(ValueError, match=r"1 of 8 .* no learned token.*\n.*twice"):
        measure(reader, tmp_path / "plan", allow_unreadable=0.0)
    found = measure(reader, tmp_path / "plan", allow_unlearned=1, allow_unreadable=0.0)
    mixture = Mixture([part.source for part in reader.parts], [1.0], shuffle=False)
    plan = RunPlan(mixture, found, BatchConfig(samples=8, length=16), epochs=1)
    (step,) = steps(Pipeline(plan, reader))
    assert step.records[0] == "twice" and not step.faults
    assert 0 not in step.batch.learned_sample


def test_an_unreadable_record_is_counted_and_gets_no_room(tmp_path):
    reader = written(tmp_path, *small_set.examples(8))
    damage(reader, at=40)
    found = measure(reader, tmp_path / "plan")
    assert found.tokens[0] == 0 and found.tokens[1:].all()
    assert [fault.where for fault in found.faults] == [reader.where(0)]
    assert measure(reader, tmp_path / "plan").faults == found.faults

    mixture = Mixture([part.source for part in reader.parts], [1.0], shuffle=False)
    plan = RunPlan(mixture, found, BatchConfig(samples=8, length=16), epochs=1)
    (step,) = steps(Pipeline(plan, reader))
    assert len(step.records) == 8 and len(step.faults) == 1


def written(folder, *examples: Example) -> Reader:
    write_set(folder / "set", examples, name="sky", split="train")
    parts = [Part(TFRecordSource(folder / "set"), "plain")]
    return Reader(parts, small_set.tokenizer(folder), small_set.FACTS, length=16)


def damage(reader: Reader, at: int) -> None:
    """Flips a bit of the first shard."""
    source = reader.parts[0].source
    with open(os.path.join(source.folder, source.shards[0]), "r+b") as shard:
        shard.seek(at)
        byte = shard.read(1)[0]
        shard.seek(at)
        shard.write(bytes([byte ^ 1]))
