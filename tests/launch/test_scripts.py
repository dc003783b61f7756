"""All scripts of `launch/`: bash and shellcheck have nothing to say about them."""

import shutil
import subprocess

import pytest
from machines import ROOT

SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))


def test_bash_reads_them():
    for script in SCRIPTS:
        done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(
        ["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_person_who_asks_is_told_how_they_are_used():
    for script in ("tpu_pod.sh", "again.sh"):
        done = subprocess.run(
            ["bash", f"launch/{script}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"launch/{script}" in done.stdout and "ASTROLLAVA_STARTS=100" in done.stdout
