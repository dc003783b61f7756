"""Checksums: the list that holds its own, and what differs told all at once."""

import os

import google_crc32c
import pytest

from astrollava_jax import checksums, files


@pytest.fixture
def folder(tmp_path):
    """Three files with their list."""
    for name, content in {
        "config.yaml": b"seed: 3\n",
        "a/empty": b"",
        "a/b/array": bytes(999),
    }.items():
        files.write_bytes(tmp_path / name, content)
    checksums.write_list(str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _known():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # as in every table


def test_a_list_names_every_file_but_itself(folder):
    stated = checksums.read_list(str(folder))
    assert sorted(stated) == ["a/b/array", "a/empty", "config.yaml"]
    assert stated["a/b/array"]["bytes"] == 999 and stated["a/empty"]["crc32c"] == "00000000"
    assert checksums.faults(str(folder), stated) == []


def test_every_flipped_bit_of_a_list_is_seen(folder):
    path = folder / checksums.CHECKSUMS
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(ValueError, match="own checksum"):
                checksums.read_list(str(folder))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="own checksum"):
            checksums.read_list(str(folder))


def test_all_that_differs_is_told_at_once(folder):
    stated = checksums.read_list(str(folder))
    (folder / "config.yaml").write_bytes(b"seed: 4\n")
    os.truncate(folder / "a" / "b" / "array", 998)
    os.remove(folder / "a" / "empty")
    told = "\n".join(checksums.faults(str(folder), stated))
    assert "config.yaml: expected crc32c" in told
    assert "array: expected 999 bytes, found 998" in told
    assert "empty: expected 0 bytes, found no file" in told


def test_a_list_cannot_lead_out_of_its_folder(folder):
    entry = checksums.of_file(str(folder / "config.yaml"))
    for name in ("../config.yaml", str(folder / "config.yaml")):
        assert "below" in checksums.faults(str(folder), {name: entry})[0]


def test_a_file_that_will_be_written_may_stand_in_the_list(folder):
    checksums.write_list(str(folder), **{"base.json": b"{}"})
    stated = checksums.read_list(str(folder))
    assert "base.json: expected 2 bytes, found no file" in checksums.faults(str(folder), stated)[0]
    (folder / "base.json").write_bytes(b"{}")
    assert checksums.faults(str(folder), stated) == []
