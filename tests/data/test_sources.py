"""Record sets as they are read: any record, in any order, and what happens to damaged ones."""

import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_set import numbered

from astrollava_jax.data import tfrecord
from astrollava_jax.data.example import decode
from astrollava_jax.data.sources import TFRecordSource


def test_records_come_back_in_any_order(folder):
    source = TFRecordSource(folder)
    assert len(source) == 7
    for number in (6, 0, 3, 2, 5):
        assert decode(source[number]) == numbered(7)[number]
    for number in (7, -1):
        with pytest.raises(IndexError, match=f"record {number} of 7"):
            source[number]


def test_a_source_travels_to_another_process(folder):
    source = TFRecordSource(folder)
    assert pickle.loads(pickle.dumps(source))[4] == source[4]


def test_more_shards_are_read_than_a_process_may_open(folder):
    sources = [TFRecordSource(folder) for _ in range(100)]  # of three shards each
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        with ThreadPoolExecutor(4) as threads:
            for records in threads.map(list, sources):
                assert [decode(record) for record in records] == numbered(7)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))


def test_where_names_shard_record_and_byte(folder):
    source = TFRecordSource(folder)
    offset = np.fromfile(folder / "sky-train.tfrecord-00001-of-00003.idx", "<i8")[2]
    assert source.where(4) == (
        f"{folder}/sky-train.tfrecord-00001-of-00003, record 1 at byte {offset}"
    )


def test_without_sidecars_the_index_is_made_anew(folder):
    before = TFRecordSource(folder)
    for path in folder.glob("*.idx"):
        path.unlink()
    after = TFRecordSource(folder)
    assert [after[number] for number in range(7)] == [before[number] for number in range(7)]


def test_no_flipped_bit_passes(folder):
    shard = folder / "sky-train.tfrecord-00001-of-00003"
    good = shard.read_bytes()
    source = TFRecordSource(folder)
    for byte in range(0, len(good), 3):
        damaged = bytearray(good)
        damaged[byte] ^= 1 << byte % 8
        shard.write_bytes(bytes(damaged))
        refused = [number for number in range(7) if not _readable(source, number)]
        assert len(refused) == 1 and refused[0] in (3, 4, 5)


def _readable(source: TFRecordSource, number: int) -> bool:
    try:
        source[number]
    except ValueError as error:
        assert "sky-train.tfrecord-00001-of-00003, record" in str(error)
        return False
    return True


def test_a_shard_that_was_cut_short_is_refused(folder):
    shard = folder / "sky-train.tfrecord-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="00001-of-00003: its index ends at byte"):
        TFRecordSource(folder)
    (folder / f"{shard.name}.idx").unlink()
    with pytest.raises(ValueError, match=r"record 2 at byte .* ends 10 bytes too early"):
        TFRecordSource(folder)
    shard.write_bytes(shard.read_bytes()[:5])
    with pytest.raises(
        ValueError, match="record 0 at byte 0: damaged, the file ends inside a header"
    ):
        TFRecordSource(folder)


def test_a_shard_cut_between_records_is_refused(folder):
    shard = folder / "sky-train.tfrecord-00001-of-00003"
    index = folder / f"{shard.name}.idx"
    shard.write_bytes(shard.read_bytes()[: np.fromfile(index, "<i8")[2]])
    index.unlink()
    with pytest.raises(
        ValueError, match=r"expected 3 records, as dataset_info\.json states, found 1"
    ):
        TFRecordSource(folder)


def test_a_broken_index_is_refused(folder):
    index = folder / "sky-train.tfrecord-00000-of-00003.idx"
    content = index.read_bytes()
    index.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="pairs of 8-byte integers"):
        TFRecordSource(folder)
    index.write_bytes(content[:-16])
    with pytest.raises(ValueError, match="remove the index if the shard is whole"):
        TFRecordSource(folder)


def test_a_folder_that_is_no_set_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a record set"):
        TFRecordSource(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="expected shards"):
        TFRecordSource(tmp_path)
    (folder / "sky-train.tfrecord-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing: sky-train.*00001"):
        TFRecordSource(folder)


def test_one_of_several_splits_is_chosen(folder, tmp_path):
    tfrecord.write_set(tmp_path / "other", numbered(2), name="sky", split="test")
    for path in (tmp_path / "other").glob("*.tfrecord*"):
        path.rename(folder / path.name)
    with pytest.raises(ValueError, match="found sky-test in 1 shards, sky-train in 3 shards"):
        TFRecordSource(folder)
    assert len(TFRecordSource(folder, split="test")) == 2
    assert len(TFRecordSource(folder, split="train")) == 7
