"""What a run knows and does not tell: the environment's secrets, and where things lay."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from astrollava_jax.run.convert import convert

pytestmark = pytest.mark.usefixtures("quickly_compiled")

NEEDS_PATHS = {"base.json", "config.yaml"}
"""Where a run says which model and records it goes on with; absolute, as the user gave them."""

ORBAX = {"commit_success.txt", "_CHECKPOINT_METADATA"}
"""Where Orbax notes which folder it wrote to, and with which config."""


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def holding(folder: Path, *words: str) -> list[str]:
    """The files of a folder in which one of the words stands, or in whose name."""
    return [
        name
        for name, content in contents(folder)
        if any(word in name or word.encode() in content for word in words)
    ]


def test_no_secret_is_written(secrets, stage1, stage2, tmp_path):
    assert all(os.environ[name] == value for name, value in secrets.items())
    convert(stage2.out, tmp_path / "hf", "hf")
    for folder in (stage1.out, stage2.out, tmp_path / "hf"):
        assert holding(folder, *secrets.values()) == []
        assert holding(folder, os.path.expanduser("~") + os.sep) == []


def test_an_export_does_not_say_where_it_came_from(sky, stage2, tmp_path):
    for layout in ("hf", "llava"):
        convert(stage2.out, tmp_path / layout, layout)
        assert holding(tmp_path / layout, str(sky), str(tmp_path)) == [], layout


def test_a_run_says_where_its_base_and_records_are_and_nothing_else_does(sky, stage2):
    told = {Path(name) for name in holding(stage2.out, str(sky))}
    assert {str(path) for path in told if path.name not in ORBAX} == NEEDS_PATHS
    assert all(path.parts[0] == "checkpoints" for path in told if path.name in ORBAX)
