"""The words of a command line: what is listed, what helps, where options stand, how it ends."""

import errno
import os
import re
from pathlib import Path
from unittest.mock import Mock

import jax
import pytest

import astrollava_jax.cli
from astrollava_jax.cli import verify
from astrollava_jax.cli.main import COMMANDS, FAILED, MISTAKE, main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "the following arguments are required: RUN.yaml"),
        (["train", "one.yaml", "two.yaml"], "unrecognized arguments: two.yaml"),
        (["ask"], "the following arguments are required: MODEL, question"),
        (["ask", "model", "question", "answer"], "unrecognized arguments: answer"),
        (["convert", "--layout", "hf"], "required: [SRC] DST"),
        (["convert", "one", "two", "three", "--layout", "hf"], "expected SRC DST"),
        (["trian"], "invalid choice: 'trian'"),
    ],
)
def test_words_too_few_and_too_many(argv, message, refused):
    said = refused(*argv)
    assert message in said
    assert "usage: astrollava" in said


def test_without_a_command_the_commands_that_work_are_listed(capsys, screen):
    assert main([]) == MISTAKE
    bare = capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == bare
    listed = re.findall(r"^  (\w+) ", bare.split("commands:")[1], re.MULTILINE)
    modules = {path.stem for path in Path(astrollava_jax.cli.__file__).parent.glob("*.py")}
    assert listed == list(COMMANDS)
    no_commands = {"__init__", "libtpu", "main", "options", "page", "stacks", "streams"}
    no_commands |= {"supervisor"}
    assert set(listed) == modules - no_commands
    assert len(bare.splitlines()) <= screen


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_in_one_screen(command, capsys, screen):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert exit_.value.code == 0
    assert said.startswith(f"usage: astrollava {command}")
    assert len(said.splitlines()) <= screen


def test_options_may_stand_anywhere(folder, capsys):
    words = [
        "--batch.samples",
        "4",
        "--dry-run",
        str(folder / "run.yaml"),
        "--out=" + str(folder / "out"),
    ]
    assert main(["train", *words]) == 0
    assert "1 steps of 4 samples" in capsys.readouterr().out


def test_a_device_without_memory_is_told_with_what_takes_less(monkeypatch, capsys):
    """In the words of XLA for GPUs, and for TPUs, whose compiler says it."""
    for said in (
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nBFC: ...",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.33G of 15.75G hbm.\n",
    ):
        monkeypatch.setattr(verify, "main", Mock(side_effect=jax.errors.JaxRuntimeError(said)))
        assert main(["verify"]) == FAILED
        told = capsys.readouterr().err
        assert told.startswith(f"astrollava: {said.splitlines()[0]}\n")
        assert "--batch.rows_per_device N" in told and "--remat full" in told and "BFC" not in told
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    monkeypatch.setattr(verify, "main", Mock(side_effect=other))
    with pytest.raises(jax.errors.JaxRuntimeError):
        main(["verify"])


def test_a_full_disk_is_told_whatever_was_to_be_written(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(verify, "main", Mock(side_effect=full))
    assert main(["verify"]) == FAILED
    assert capsys.readouterr().err == (
        "astrollava: no room left on the disk: make some, start again\n"
    )
