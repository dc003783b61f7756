"""Bad records: each kind has its loss off, is counted by its kind, and moves no other record."""

import dataclasses
import os
import struct
import time
from typing import Any

import numpy as np
import pytest
import small_set

from astrollava_jax.data import example as example_module
from astrollava_jax.data.dialogue import shortened
from astrollava_jax.data.example import IMAGE_MARKER, Example, Turn, decode, encode
from astrollava_jax.data.faults import DAMAGED, KINDS, Fault, RecordError, visible
from astrollava_jax.data.lengths import measure
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import masked_crc32c, write_set

COUNT = 24


def written(folder, examples, template: Any = "plain", length=16) -> Reader:
    write_set(folder / "set", examples, name="sky", split="train", records_per_shard=8)
    parts = [Part(TFRecordSource(folder / "set"), template)]
    return Reader(parts, small_set.tokenizer(folder), small_set.FACTS, length)


def planned(reader: Reader, lengths, epochs=1, shuffle=True) -> RunPlan:
    mixture = Mixture([part.source for part in reader.parts], [1.0], seed=1, shuffle=shuffle)
    batch = BatchConfig(samples=4, length=reader.length)
    return RunPlan(mixture, lengths, batch, epochs=epochs, multiple=2)


def steps(plan, reader, start=0, **options) -> list:
    with Pipeline(plan, reader, **options).batches(start) as batches:
        return list(batches)


def rewrite(reader: Reader, number: int, old: bytes, new: bytes, *, honest: bool = True) -> None:
    """Changes bytes of a record where it stands, and its checksum with them unless dishonest."""
    assert len(old) == len(new)
    source = reader.parts[0].source
    shard, record = source._locate(number)
    offset, length = source._indices[shard][record].tolist()
    with open(os.path.join(source.folder, source.shards[shard]), "r+b") as handle:
        handle.seek(offset + 12)
        payload = handle.read(length)
        assert payload.count(old) >= 1
        payload = payload.replace(old, new, 1)
        handle.seek(offset + 12)
        handle.write(payload)
        if honest:
            handle.write(struct.pack("<I", masked_crc32c(payload)))


DAMAGE = {
    "checksum": lambda reader, number: rewrite(
        reader, number, b"caption", b"capt1on", honest=False
    ),
    "message": lambda reader, number: rewrite(reader, number, b"two", b"\xff\xfe\xfd"),
    "role": lambda reader, number: rewrite(reader, number, b"human", b"robot"),
    "image": lambda reader, number: rewrite(reader, number, b"IDAT", b"IDAX"),
    "changed": lambda reader, number: rewrite(reader, number, b"longest", b"a b c d"),
}
"""What goes wrong after the records were measured, and what does not change their length."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_record_that_goes_bad_keeps_its_place_and_loses_its_loss(kind, tmp_path):
    star = Example("bad", (small_set.picture(9),), (Turn("human", "a"), Turn("assistant", "two")))
    bad = dataclasses.replace(star, caption="longest")
    good = [dataclasses.replace(bad, id=f"good-{number}") for number in range(3)]
    reader = written(tmp_path, [good[0], bad, *good[1:]])
    plan = planned(reader, measure(reader, tmp_path / "plan"), shuffle=False)
    (before,) = steps(plan, reader)
    DAMAGE[kind](reader, 1)
    (after,) = steps(plan, reader)

    (fault,) = after.faults
    assert (
        fault.kind == kind and fault.where == reader.where(1) and fault.damaged == (kind in DAMAGED)
    )
    assert set(before.batch.learned_sample.ravel().tolist()) == {-1, 0, 1, 2, 3}
    assert set(after.batch.learned_sample.ravel().tolist()) == {-1, 0, 2, 3}
    np.testing.assert_array_equal(after.batch.segment_ids, before.batch.segment_ids)
    others = before.batch.learned_sample >= 0
    assert np.count_nonzero(others) - np.count_nonzero(after.batch.learned_sample >= 0) == (
        np.count_nonzero(before.batch.learned_sample == 1)
    )


def test_the_table_of_kinds_is_complete():
    assert {*DAMAGE, "dialogue"} == set(KINDS)


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ((Turn("human", "a"), Turn("human", "two")), "alternate"),
        ((Turn("human", f"{IMAGE_MARKER} {IMAGE_MARKER}"), Turn("assistant", "two")), "markers"),
        ((), "expected a human turn"),
    ],
)
def test_what_a_template_has_no_place_for_is_refused(turns, why, tmp_path):
    sky = Example("sky", (small_set.picture(9),), turns)
    fine = Example("fine", turns=(Turn("human", "a"), Turn("assistant", "two")))
    reader = written(tmp_path, [sky, fine], "llava_v1", length=64)
    found = measure(reader, tmp_path / "plan", allow_unlearned=1)
    (fault,) = found.faults
    assert fault.kind == "dialogue" and why in fault.why and not fault.damaged
    assert found.tokens[0] == 0 and found.learned[1] > 0


def test_an_empty_answer_teaches_nothing_and_is_told_before_the_first_step(tmp_path):
    silent = Example("silent", turns=(Turn("human", "a star"), Turn("assistant", "")))
    reader = written(tmp_path, [silent], "llava_v1", length=64)
    with pytest.raises(ValueError, match="'silent': the assistant says nothing"):
        measure(reader, tmp_path / "plan")
    assert measure(reader, tmp_path / "plan", allow_unlearned=1).learned.tolist() == [0]


# Texts


def test_control_characters_are_text_like_any_other(tmp_path):
    strange = "a\0star\x1b[2J\r\n\x07\u202edetrevni\u2066 \ufeff\U000e0041"
    turns = (Turn("human", strange), Turn("assistant", strange))
    sky = Example("sky", turns=turns, caption=strange)
    assert decode(encode(sky)) == sky
    reader = written(tmp_path, [sky], "llava_v1", length=64)
    assert measure(reader, tmp_path / "plan").learned[0] > 0


@pytest.mark.parametrize("field", ["id", "caption", "text"])
def test_half_a_character_is_neither_written_nor_read(field):
    half = "star \ud83d"
    turns = (Turn("human", half if field == "text" else "a"),)
    names: dict[str, Any] = {"id": "sky"} | ({field: half} if field != "text" else {})
    with pytest.raises(ValueError, match=r"expected text that UTF-8 can write.*'\\ud83d', at 5"):
        encode(Example(turns=turns, **names))
    raw = example_module._write_features({"id": [half.encode("utf-8", "surrogatepass")]})
    with pytest.raises(RecordError, match="expected UTF-8 text") as error:
        decode(raw)
    assert error.value.kind == "message"


def test_what_is_told_of_a_record_fits_a_terminal():
    name = "../../etc/passwd\n\x1b]0;owned\x07\u202e\0" + "x" * 300
    fault = Fault.of(RecordError(f"example {name}: {'y' * 9999}", "role"), name, "shard 0")
    assert fault.record.isprintable() and fault.why.isprintable()
    assert fault.record.startswith(r"../../etc/passwd\n\x1b]0;owned\x07\u202e\x00xxx")
    assert fault.record.endswith("... of 329 characters") and len(fault.why) < 600
    assert (
        visible("M 31 \N{GREEK SMALL LETTER ALPHA}\u4e2d")
        == "M 31 \N{GREEK SMALL LETTER ALPHA}\u4e2d"
    )


@pytest.mark.parametrize("letter", ["a", "a ", "\0", "\U0001f600", "1"])
def test_a_million_characters_take_no_longer_than_a_row(letter, tmp_path):
    text = (letter * 1_000_000)[:1_000_000]
    long = Example("long", (), (Turn("human", "a star"), Turn("assistant", text)), caption=text)
    for template in ("plain", "llava_v1"):
        (folder := tmp_path / template).mkdir()
        reader = written(folder, [long], template, length=128)
        record = reader.read(0)
        begun = time.perf_counter()
        words = reader.words(0, record)
        assert time.perf_counter() - begun < 1
        assert len(words.tokens) <= 128 and words.whole <= 2 * 32 * 128 + 64


def test_what_is_left_out_of_a_long_record_lies_behind_every_row():
    long, marker = "x" * 60, IMAGE_MARKER
    turns = (
        Turn("human", f"{marker} why?"),
        Turn("assistant", long),
        Turn("human", f"{long} {marker} {long} {marker}"),
        Turn("assistant", long),
        Turn("human", long),
    )
    assert shortened(turns, long, 1000) == (turns, long)
    short, caption = shortened(turns, long, 50)
    assert short == (turns[0], Turn("assistant", "x" * 22), Turn("human", marker * 2))
    assert caption == "x" * 50
    many = (Turn("human", "?"), Turn("assistant", "!")) * 100_000
    assert len(shortened(many, "", 1000)[0]) <= 1000 // 16 + 1


# The order


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run of two epochs in which some records were bad before it, and some went bad since."""
    folder = tmp_path_factory.mktemp("broken")
    reader = written(folder, small_set.examples(COUNT))
    rewrite(reader, 3, b"human", b"robot")
    lengths = measure(reader, folder / "plan")
    rewrite(reader, 11, b"IDAT", b"IDAX")
    rewrite(reader, 17, b"caption", b"capt1on", honest=False)
    plan = planned(reader, lengths, epochs=2)
    return reader, plan, steps(plan, reader)


def facts(step) -> tuple:
    return step.records, step.faults, [field.tobytes() for field in step.batch]


def test_every_record_is_read_once_an_epoch_whatever_is_bad(broken):
    reader, plan, whole = broken
    assert len(whole) == plan.total_steps
    bad = {reader.where(3), "sky-11", reader.where(17)}
    expected = {f"sky-{number}" for number in range(COUNT)} - {"sky-3", "sky-17"} | bad
    for epoch in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
        assert sorted(name for step in epoch for name in step.records) == sorted(expected)
    learned = [learned_records(step) for step in whole]
    assert {name for names in learned for name in names} == expected - bad


def learned_records(step) -> list[str]:
    numbers = set(step.batch.learned_sample.ravel().tolist()) - {-1}
    return [step.records[number] for number in sorted(numbers)]


@pytest.mark.parametrize("start", [1, 4, 7, 11])
def test_a_resume_learns_the_same_records_at_every_step(broken, start):
    reader, plan, whole = broken
    rest = steps(plan, reader, start)
    assert [facts(step) for step in rest] == [facts(step) for step in whole[start:]]


def test_workers_and_hosts_learn_the_same_records_too(broken):
    reader, plan, whole = broken
    rest = steps(plan, reader, 5, workers=2)
    assert [facts(step) for step in rest] == [facts(step) for step in whole[5:]]
    halves = [steps(plan, reader, parts=[i], of=2) for i in range(2)]
    for one, other, both in zip(*halves, whole):
        assert sorted(one.records + other.records) == sorted(both.records)
        found = [*one.faults, *other.faults]
        assert sorted(map(str, found)) == sorted(map(str, both.faults))


def test_records_that_are_mended_during_a_run_stay_where_they_were(broken, tmp_path):
    reader, _, _ = broken
    again = measure(reader, tmp_path)
    assert again.tokens[3] == 0 and again.tokens[17] == 0 and again.tokens[11] > 0
    assert sorted(fault.kind for fault in again.faults) == ["checksum", "role"]
