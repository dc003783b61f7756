"""A machine without a TPU on which the compiler for TPUs is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from astrollava_jax.cli import libtpu

PROGRAM = """\
import sys
from astrollava_jax.cli import {command} as command
from astrollava_jax.cli.main import main

def devices(argv):
    import jax
    print(jax.devices()[0].platform)

command.main = devices
sys.argv = ["astrollava", {command!r}]
sys.exit(main())
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(libtpu.tpu_is_here(), reason="a TPU is here")
def test_a_command_finds_the_processor_and_nobody_complains():
    names = ("JAX", "TPU", "XLA", "LIBTPU")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(command="ask")],
        capture_output=True, text=True, env=clean,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")


def test_a_machine_with_a_tpu_is_told_nothing(tmp_path, monkeypatch):
    (tmp_path / "accel0").touch()
    for name in libtpu.WITHOUT_A_TPU:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(libtpu, "CHIPS", (str(tmp_path / "accel0"),))
    libtpu.tell_unless_a_tpu_is_here()
    assert not set(libtpu.WITHOUT_A_TPU) & set(os.environ)
    (tmp_path / "accel0").unlink()
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    libtpu.tell_unless_a_tpu_is_here()
    told = {name: os.environ[name] for name in libtpu.WITHOUT_A_TPU}
    assert told == {**libtpu.WITHOUT_A_TPU, "TPU_WORKER_ID": "3"}
