import pytest

from astrollava_jax.data.example import decode
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.quickstart.examples import examples
from data_prep.simulated_sky import main


def test_records_hold_the_examples_in_order(tmp_path, capsys):
    folder = tmp_path / "heldout"
    command = f"--out {folder} --count 5 --seed 2 --start 10 --split heldout --size 16 --workers 1"
    assert main(command.split()) == 0
    assert "5 examples" in capsys.readouterr().out
    records = TFRecordSource(str(folder))
    written = [decode(records[number]) for number in range(len(records))]
    assert written == list(examples(2, 5, start=10, size=16))
    assert (folder / "simulated_sky-heldout.tfrecord-00000-of-00001").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--count 0 --seed -1", ["count: expected at least 1", "seed: expected at least 0"]),
        ("--count 1 --size 4", ["size: expected at least 16, found 4"]),
    ],
)
def test_numbers_too_low_are_named_together(tmp_path, capsys, options, said):
    assert main([*options.split(), "--out", str(tmp_path / "sky")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True))
    assert not (tmp_path / "sky").exists()


def test_a_folder_that_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert main(["--out", str(tmp_path), "--count", "1", "--workers", "1"]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"
