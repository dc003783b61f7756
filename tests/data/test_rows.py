import dataclasses

import numpy as np
import pytest
import small_set

from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.pieces import Rendered
from astrollava_jax.data.rows import RowBuilder, RowShape, Sample, Slot, build_row
from astrollava_jax.data.samples import Part, Reader, expand
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.data.tiles import one_image

PAD, IMAGE = 0, 9
FACTS = small_set.FACTS  # two positions per image


def words(tokens, learned, length=99):
    rendered = Rendered(np.array(tokens, np.int32), np.array(learned, bool))
    layouts = [one_image(FACTS)] * tokens.count(IMAGE)
    return expand(rendered, IMAGE, layouts, FACTS.tokens, length)


def sample(number, tokens, learned, pixels=()):
    of = words(tokens, learned)
    slot = Slot(0, number, len(of.tokens), of.num_images, of.num_learned)
    return Sample(slot, of, tuple(np.full((4, 4, 3), value, np.uint8) for value in pixels))


# Expansion


def test_each_image_takes_its_positions():
    found = words([1, IMAGE, 5, IMAGE, 6], [0, 0, 1, 0, 1])
    assert found.tokens.tolist() == [1, IMAGE, IMAGE, 5, IMAGE, IMAGE, 6]
    assert found.features.tolist() == [-1, 0, 1, -1, 2, 3, -1]
    assert found.learned.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert (found.num_images, found.num_learned, found.whole) == (2, 2, 7)


def test_the_first_token_is_foretold_by_nothing():
    assert words([5, 6, 7], [1, 1, 1]).num_learned == 2


@pytest.mark.parametrize(
    ("length", "left", "images"),
    [(7, 7, 2), (6, 6, 2), (5, 4, 1), (4, 4, 1), (3, 3, 1), (2, 1, 0), (1, 1, 0)],
)
def test_a_cut_is_never_inside_an_image(length, left, images):
    whole = words([1, IMAGE, 5, IMAGE, 6], [0, 0, 1, 0, 1])
    cut = words([1, IMAGE, 5, IMAGE, 6], [0, 0, 1, 0, 1], length)
    assert cut.num_images == images and cut.whole == 7
    for name in ("tokens", "learned", "features"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:left])


# Rows


def test_the_row_that_the_batch_draws():
    """The picture in the docstring of `Batch`: <s> = 1, </s> = 2, a = 4, star = 5, two = 6."""
    row = build_row(
        [
            sample(0, [1, IMAGE, 4, 5, 2], [0, 0, 1, 1, 1], pixels=[10]),
            sample(1, [1, IMAGE, 6, 2], [0, 0, 1, 1], pixels=[20]),
        ],
        RowShape(length=12, learned=6, images=3, samples=3),
        FACTS,
        PAD,
    )
    assert row.tokens.tolist() == [1, 9, 9, 4, 5, 2, 1, 9, 9, 6, 2, PAD]
    assert row.segment_ids.tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0]
    assert row.feature_index.tolist() == [-1, 0, 1, -1, -1, -1, -1, 2, 3, -1, -1, -1]
    assert row.learned_index.tolist() == [2, 3, 4, 8, 9, -1]
    assert row.learned_sample.tolist() == [0, 0, 0, 1, 1, -1]
    assert row.targets[row.learned_index[:5]].tolist() == [4, 5, 2, 6, 2]
    assert row.images[:, 0, 0, 0].tolist() == [10, 20, 0]
    assert row.lengths.tolist() == [6, 5, 0]
    assert [field.dtype for field in row] == [np.int32] * 6 + [np.uint8, np.int32, np.int32]


def test_no_target_reaches_into_the_next_sample():
    pair = [sample(0, [4, 5], [0, 1]), sample(1, [6, 4], [1, 1])]
    row = build_row(pair, RowShape(length=4, learned=8, images=1, samples=2), FACTS, PAD)
    assert row.targets.tolist() == [5, 0, 4, 0]
    assert row.learned_index.tolist()[:3] == [0, 2, -1]


def test_lengths_pass_over_what_takes_no_place():
    three = [sample(0, [4, 5], [0, 1]), sample(1, [], []), sample(2, [6, 4, 5], [0, 1, 1])]
    row = build_row(three, RowShape(length=6, learned=8, images=1, samples=2), FACTS, PAD)
    assert row.lengths.tolist() == [2, 3]
    assert row.segment_ids.tolist() == [1, 1, 3, 3, 3, 0]


def test_text_and_several_images_stand_side_by_side():
    row = build_row(
        [
            sample(7, [1, 4, 5], [0, 1, 1]),
            sample(2, [1, IMAGE, IMAGE, 6], [0, 0, 0, 1], pixels=[10, 20]),
            sample(3, [IMAGE, 4], [0, 1], pixels=[30]),
        ],
        RowShape(length=12, learned=4, images=3, samples=3),
        FACTS,
        PAD,
    )
    assert row.feature_index.tolist() == [-1, -1, -1, -1, 0, 1, 2, 3, -1, 4, 5, -1]
    assert row.lengths.tolist() == [3, 6, 3]
    assert row.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert row.learned_sample.tolist() == [7, 7, 2, 3]
    assert row.targets[row.learned_index].tolist() == [4, 5, 6, 4]


# Records that fail


def written(folder, *examples: Example) -> Reader:
    write_set(folder / "set", examples, name="sky", split="train")
    parts = [Part(TFRecordSource(folder / "set"), "plain")]
    return Reader(parts, small_set.tokenizer(folder), FACTS, length=16)


def planned(reader: Reader) -> list[Slot]:
    slots = []
    for record in range(len(reader)):
        of = reader.words(record, reader.read(record))
        slots.append(Slot(record, record, len(of.tokens), of.num_images, of.num_learned))
    return slots


def star(name: str, *images: bytes, caption: str = "a star") -> Example:
    return Example(id=name, images=images, caption=caption)


def build(reader: Reader, slots: list[Slot]):
    return RowBuilder(reader, RowShape(length=16, learned=8, images=4, samples=4))(slots)


def test_a_whole_row_of_records(tmp_path):
    reader = written(tmp_path, star("one", small_set.picture(50)), star("two", caption="red star"))
    row = build(reader, planned(reader))
    ids = reader.tokenizer.encode("a star red")[0]
    a, star_, red = ids
    image, bos = reader.tokenizer.image_id, reader.tokenizer.bos_id
    assert row.arrays.tokens[:8].tolist() == [bos, image, image, a, star_, bos, red, star_]
    assert row.arrays.images[:2, 0, 0, 0].tolist() == [50, 0]
    assert row.arrays.learned_sample.tolist() == [0, 0, 1, 1, -1, -1, -1, -1]
    assert row.records == ((0, "one"), (1, "two")) and not row.faults


def test_an_undecodable_picture_leaves_its_words_unlearned(tmp_path):
    good, bad = small_set.picture(50), b"no picture"
    reader = written(tmp_path, star("one", bad), star("two", good))
    row = build(reader, planned(reader))
    assert row.arrays.segment_ids[:10].tolist() == [1] * 5 + [2] * 5
    assert row.arrays.feature_index[[1, 2, 6, 7]].tolist() == [0, 1, 2, 3]
    assert row.arrays.images[:2, 0, 0, 0].tolist() == [0, 50]
    assert set(row.arrays.learned_sample.tolist()) == {1, -1}
    (fault,) = row.faults
    assert fault.record == "one" and fault.where == reader.where(0) and fault.why


def test_a_damaged_record_keeps_its_slot(tmp_path):
    reader = written(
        tmp_path, star("one", small_set.picture(9)), star("two", small_set.picture(50))
    )
    slots, before = planned(reader), build(reader, planned(reader)).arrays
    flip_a_bit(tmp_path / "set" / reader.parts[0].source.shards[0], at=40)
    row = build(reader, slots)

    pad = reader.tokenizer.pad_id
    assert row.arrays.tokens[:5].tolist() == [pad] * 5
    assert set(row.arrays.learned_sample.tolist()) == {1, -1}
    for name in ("segment_ids", "positions"):
        np.testing.assert_array_equal(getattr(row.arrays, name), getattr(before, name))
    for name in ("tokens", "feature_index"):
        np.testing.assert_array_equal(getattr(row.arrays, name)[5:], getattr(before, name)[5:])
    np.testing.assert_array_equal(row.arrays.images[1:], before.images[1:])
    (fault,) = row.faults
    assert fault.record == "" and "damaged" in fault.why
    assert row.records == ((0, reader.where(0)), (1, "two"))


def test_a_record_that_is_not_as_it_was_planned_keeps_its_slot(tmp_path):
    reader = written(tmp_path, star("one"), star("two"))
    longer = [slot._replace(tokens=slot.tokens + 1) for slot in planned(reader)[:1]]
    row = build(reader, [*longer, planned(reader)[1]])
    assert row.arrays.segment_ids[:7].tolist() == [1] * 4 + [2] * 3
    assert set(row.arrays.learned_sample.tolist()) == {1, -1}
    assert "expects 4 tokens" in row.faults[0].why and "gives 3" in row.faults[0].why


def test_pictures_beyond_the_cut_are_not_even_decoded(tmp_path):
    turns = (Turn("human", "<image><image>"), Turn("assistant", "two"))
    pair = Example(id="pair", images=(small_set.picture(50), b"no picture"), turns=turns)
    reader = written(tmp_path, dataclasses.replace(pair, caption="a star"))
    reader.length = 4
    slots = [slot._replace(tokens=3, images=1, learned=0) for slot in planned(reader)]
    row = build(reader, slots)
    assert not row.faults and row.arrays.images[:2, 0, 0, 0].tolist() == [50, 0]


def test_a_row_too_short_for_an_image_is_refused(tmp_path):
    parts = [Part(small_set.source(tmp_path / "set", 3), "plain")]
    with pytest.raises(ValueError, match=r"length is 3, but one image takes 2 .* at least 4"):
        Reader(parts, small_set.tokenizer(tmp_path), FACTS, length=3)


def flip_a_bit(path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
