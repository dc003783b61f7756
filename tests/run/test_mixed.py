"""Text alone, one picture and several in one run; packed or not, whole or with damaged records."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import curve

from astrollava_jax import files
from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.data.example import Turn
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.quickstart import examples
from astrollava_jax.training.metrics import read_log

pytestmark = pytest.mark.usefixtures("quickly_compiled")

COUNT = 18
STEP = [
    "--steps",
    "2",
    "--batch.samples",
    "9",
    "--evaluate",
    "null",
    "--checkpoint.every_steps",
    "2",
]
"""Two steps hold every record once."""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What is told and learned here hangs on no mesh; for one device it is soon compiled."""
    small_run.on_devices(monkeypatch, 1)


@pytest.fixture(scope="module")
def mixed(sky) -> Path:
    """Dialogues about one picture, about two, and about none."""
    folder = sky / "mixed"
    drawn = list(examples.examples(7, COUNT, size=small_run.SIZE))
    told = []
    for number, (one, other) in enumerate(zip(drawn, drawn[1:] + drawn[:1])):
        if number % 3 == 1:
            turns = (Turn("human", "<image> what is this?"), one.turns[1])
            turns += (Turn("human", "and <image> this?"), other.turns[1])
            one = dataclasses.replace(one, images=one.images + other.images, turns=turns)
        elif number % 3 == 2:
            one = dataclasses.replace(one, images=())
        told.append(one)
    write_set(files.join(folder, "train"), told, name="sky", split="train")
    return folder


def run(mixed: Path, sky: Path, out: Path, *changes: str) -> int:
    init = small_run.fresh_projector(sky / "base")
    file = small_run.run_file(mixed, 2, init, out)
    return main(["train", file, "--data.0.records", str(mixed / "train"), *STEP, *changes])


def test_packed_and_unpacked_rows_learn_the_same(mixed, sky, tmp_path):
    assert run(mixed, sky, tmp_path / "packed") == COMPLETE
    assert run(mixed, sky, tmp_path / "unpacked", "--batch.packing", "false") == COMPLETE
    packed, unpacked = np.array(curve(tmp_path / "packed")), np.array(curve(tmp_path / "unpacked"))
    np.testing.assert_allclose(packed[:, 0], unpacked[:, 0], rtol=1e-5)
    np.testing.assert_allclose(packed[:, 1], unpacked[:, 1], rtol=1e-4)
    fills = [
        [facts["packing"] for facts in read_log(str(tmp_path / name / "log.jsonl"))]
        for name in ("packed", "unpacked")
    ]
    assert all(fuller > emptier for fuller, emptier in zip(*fills, strict=True))


def test_a_damaged_record_is_counted_and_named_and_too_many_stop_the_run(
    mixed, sky, tmp_path, capsys
):
    damaged = tmp_path / "damaged"
    shutil.copytree(mixed / "train", damaged)
    shard = damaged / TFRecordSource(str(damaged)).shards[0]
    content = bytearray(shard.read_bytes())
    content[200] ^= 1  # in the first record
    shard.write_bytes(content)

    changes = ["--data.0.records", str(damaged)]
    assert run(mixed, sky, tmp_path / "refused", *changes) == MISTAKE
    assert "1 of 18 records cannot be read" in capsys.readouterr().err

    changes += ["--bad_records.max_fraction", "0.1"]
    assert run(mixed, sky, tmp_path / "run", *changes) == COMPLETE
    told = capsys.readouterr().out
    log = read_log(str(tmp_path / "run" / "log.jsonl"))
    assert log[-1]["skipped_records"] == 1
    (fault,) = [fault for facts in log for fault in facts.get("faults", [])]
    assert "damaged" in fault and f"unreadable record, loss off: {fault}" in told

    # The set as it is now is another: the rest of the run would not be the run's.
    changes[1] = str(mixed / "train")
    assert run(mixed, sky, tmp_path / "run", *changes) == MISTAKE
    assert "data.0.records: " in capsys.readouterr().err


def test_a_set_that_changed_under_its_name_is_refused(mixed, sky, tmp_path, capsys):
    copy = tmp_path / "train"
    drawn = list(examples.examples(8, COUNT, size=small_run.SIZE))
    write_set(str(copy), drawn, name="sky", split="train")
    assert run(mixed, sky, tmp_path / "run", "--data.0.records", str(copy)) == COMPLETE
    files.remove(str(copy))
    write_set(str(copy), drawn[::-1], name="sky", split="train")
    assert run(mixed, sky, tmp_path / "run", "--data.0.records", str(copy)) == MISTAKE
    assert "its record sets have changed since it began (sets [0]" in capsys.readouterr().err


def test_markers_and_pictures_that_differ_in_number_name_the_record(mixed, sky, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    (one,) = examples.examples(9, 1, size=small_run.SIZE)
    turns = (Turn("human", "<image> what is <image> this?"), one.turns[1])
    twice = dataclasses.replace(one, id="seen twice", turns=turns)
    write_set(str(wrong), [twice], name="sky", split="train")
    second = (
        f"[{{records: {mixed / 'train'}, template: model}}, {{records: {wrong}, template: model}}]"
    )
    assert run(mixed, sky, tmp_path / "run", "--data", second) == MISTAKE
    told = capsys.readouterr().err
    assert "seen twice" in told and "expected 1 <image> markers in the human turns" in told
