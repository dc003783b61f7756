"""Output that is gone ends no run: closed pipes, terminals that were hung up, closed streams."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = """
import sys
from astrollava_jax.cli import main, supervisor
main.GOES_ON = ("verify",)
from astrollava_jax.cli import verify

def tell(argv):
    from rich.console import Console
    sys.stdin is None or sys.stdin.isatty() or sys.stdin.readline()  # until the reader has gone
    for _ in range(3):
        Console(soft_wrap=True).print("a step")
        print("a word", flush=True)
        print("a word", file=sys.stderr, flush=True)
    open(argv[0], "w").write("saved")
    error = ValueError("stopped")
    error.resumable = True
    raise error

verify.main = tell
sys.argv = ["astrollava", "verify", sys.argv[1]]
sys.exit(main.main())
"""


def start(mark: Path, closed: str = "", **streams: Any) -> subprocess.Popen:
    """A command that says something, saves, and says how it ended; a shell closes streams."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ASTROLLAVA_UNWATCHED": "",
    }
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    return subprocess.Popen(
        [*shell, sys.executable, "-c", COMMAND, str(mark)], env=environment, text=True, **streams
    )


@pytest.mark.parametrize("how", ["pipe", "terminal"])
def test_a_command_goes_on_when_nobody_reads_it_any_more(how, tmp_path):
    reader, writer = pty.openpty() if how == "terminal" else os.pipe()
    command = start(tmp_path / "mark", stdin=subprocess.PIPE, stdout=writer, stderr=writer)
    os.close(reader)
    os.close(writer)
    command.communicate("gone\n", timeout=30)
    assert command.returncode == 75 and (tmp_path / "mark").read_text() == "saved"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_command_runs_with_a_closed_stream(closed, tmp_path):
    command = start(tmp_path / "mark", closed, stdin=subprocess.DEVNULL)
    assert command.wait(30) == 75 and (tmp_path / "mark").read_text() == "saved"
