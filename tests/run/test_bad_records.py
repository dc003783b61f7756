"""A run whose records are bad, and whose storage fails, ends as one whose storage does not fail."""

import shutil
import struct
from pathlib import Path

import pytest
import small_run
from small_run import arrays, curve

from astrollava_jax.data.faults import StorageError
from astrollava_jax.data.tfrecord import masked_crc32c
from astrollava_jax.run import directory
from astrollava_jax.run import train as train_module
from astrollava_jax.run.train import train
from astrollava_jax.training.metrics import read_log

pytestmark = pytest.mark.usefixtures("quickly_compiled")

BAD = {7: (b"IDAT", b"IDAX"), 20: (b"human", b"robot"), 33: (b"IDAT", b"IDAX")}
"""Records that do not say what they said, with right checksums; the 41st has a wrong one."""


@pytest.fixture(scope="module")
def bad_sky(sky, tmp_path_factory) -> Path:
    """The records of the small runs, of which some are bad."""
    folder = tmp_path_factory.mktemp("bad")
    for split in ("train", "heldout"):
        shutil.copytree(sky / split, folder / split)
    (shard,) = (folder / "train").glob("*-of-00001")
    content, offset = bytearray(shard.read_bytes()), 0
    for number in range(60):
        (length,) = struct.unpack_from("<Q", content, offset)
        payload = bytes(content[offset + 12 : offset + 12 + length])
        if number in BAD:
            assert BAD[number][0] in payload
            payload = payload.replace(*BAD[number], 1)
            content[offset + 12 : offset + 12 + length] = payload
            struct.pack_into("<I", content, offset + 12 + length, masked_crc32c(payload))
        if number == 41:
            content[offset + 12 + length // 2] ^= 1
        offset += length + 16
    shard.write_bytes(content)
    return folder


def told(out: Path) -> list:
    """What the log says of the faults of each step."""
    keys = ("step", "skipped_records", "faults", "fault_kinds")
    log = read_log(str(out / "log.jsonl"))
    return [{key: facts.get(key) for key in keys} for facts in log if "loss" in facts]


def test_a_run_with_bad_records_goes_on_as_if_it_had_not_stopped(sky, bad_sky, monkeypatch):
    init = small_run.fresh_projector(sky / "base")
    whole = small_run.read_run(
        small_run.run_file(bad_sky, 1, init, bad_sky / "whole"), bad_records__max_fraction=0.2
    )
    train(whole)
    log = told(Path(whole.out))
    kinds = {kind for facts in log for kind in facts["fault_kinds"] or ()}
    assert kinds == {"image", "role", "checksum"}
    for facts in log:
        assert sum((facts["fault_kinds"] or {}).values()) == len(facts["faults"] or ())
    assert log[-1]["skipped_records"] == sum(len(facts["faults"] or ()) for facts in log) > 4

    torn = small_run.read_run(
        small_run.run_file(bad_sky, 1, init, bad_sky / "torn"), bad_records__max_fraction=0.2
    )
    deliveries = train_module.deliveries

    def failing(data, stage, start):
        for number, delivery in enumerate(deliveries(data, stage, start)):
            if number == 6:
                raise StorageError("the mount is gone")
            yield delivery

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "deliveries", failing)
        with pytest.raises(StorageError, match="the mount is gone"):
            train(torn)
    assert len(curve(torn.out)) == directory.finished_steps(torn.out)[-1] == 6
    train(torn)
    assert curve(torn.out) == curve(whole.out)
    assert told(Path(torn.out)) == log
    ours, theirs = arrays(Path(torn.out), 8), arrays(Path(whole.out), 8)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
