"""The parent of a run, over children that are small scripts: signals, exit codes, hangs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from astrollava_jax.cli.stacks import is_stopped
from astrollava_jax.cli.supervisor import RESUMABLE, WAITED_FOR
from astrollava_jax.training.watchdog import Phase

PARENT = """
import sys
from astrollava_jax.cli import supervisor
sys.exit(supervisor._Supervisor([sys.executable, *sys.argv[1:]]).run())
"""

CHILD = """
import os, signal, sys, time
from astrollava_jax.cli import supervisor
assert supervisor.begin_child()
from astrollava_jax.training.watchdog import Heart, WatchdogConfig
heart = Heart(WatchdogConfig(floor_seconds=0.5, factor=1.0, first_step_seconds=600.0))
for step in range(3):
    heart.beat("input")
    heart.beat("step", str(step))
heart.beat("input")
print("ready", flush=True)
"""


@pytest.fixture
def start():
    """Starts a parent over a child that is a script; none is left behind."""
    with contextlib.ExitStack() as begun:

        def start(child: str, **variables: str) -> subprocess.Popen:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
            parent = subprocess.Popen(
                [sys.executable, "-c", PARENT, "-c", child],
                env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, process_group=0,
            )  # fmt: skip
            begun.callback(parent.kill)
            begun.enter_context(parent)
            return parent

        yield start


ENDS = {
    "sys.exit(0)": (0, {}, ""),
    "sys.exit(1)": (1, {}, ""),
    "sys.exit(2)": (2, {}, ""),
    "sys.exit(75)": (75, {}, ""),
    "os.kill(os.getpid(), signal.SIGKILL)": (75, {}, "SIGKILL before it began; if nobody did it"),
    "os.kill(os.getpid(), signal.SIGSEGV)": (1, {}, "ended by SIGSEGV"),
    "os.abort()": (1, {}, "ended by SIGABRT"),
    "os.abort() # of several": (75, {"ASTROLLAVA_PROCESSES": "2"}, "another process of the run is"),
}
"""How a child ends -> the exit code of its parent, in which environment, and what it says."""


@pytest.mark.parametrize("end", ENDS)
def test_exit_codes(end, start):
    code, variables, told = ENDS[end]
    parent = start(f"import os, signal, sys\n{end}", **variables)
    said = parent.communicate(timeout=30)[1]
    assert parent.returncode == code and told in said, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_asks_to_stop_reaches_the_child_as_sigterm(number, start):
    parent = start(BLOCKED + CHILD + "print(int(signal.sigwait({signal.SIGTERM}))); sys.exit(75)\n")
    ready(parent)
    parent.send_signal(number)
    told = parent.communicate(timeout=30)[0]
    assert parent.returncode == RESUMABLE and told == "15\n"


BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"


def ready(parent: subprocess.Popen) -> None:
    """Returns when the child is."""
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n", parent.communicate()


def test_a_hang_is_told_with_its_stacks_and_ended(start):
    parent = start(CHILD + "def wedged():\n    time.sleep(600)\nwedged()\n")
    ready(parent)
    began = time.monotonic()
    said = parent.communicate(timeout=30)[1]
    assert parent.returncode == RESUMABLE and time.monotonic() - began < 10
    assert "no progress for" in said and "while it waited for input" in said
    assert "in wedged" in said, "the stack"


def test_what_a_person_pauses_for_longer_than_the_bound_goes_on(start):
    patient = CHILD.replace("floor_seconds=0.5", f"floor_seconds={BOUND}")
    parent = start(patient + "print(os.getpid(), flush=True)\nsys.exit(int(input()))\n")
    ready(parent)
    child = int(parent.stdout.readline())
    os.killpg(parent.pid, signal.SIGTSTP)  # as Ctrl-Z does, to who is in the foreground
    for process in (parent.pid, child):
        while not is_stopped(process):
            time.sleep(0.01)
    time.sleep(2 * BOUND)
    os.killpg(parent.pid, signal.SIGCONT)  # and the shell's `fg`
    said = parent.communicate("3\n", timeout=30)[1]
    assert parent.returncode == 3 and not said, said


BOUND = 2.0


def test_a_run_tells_its_stacks_and_those_of_its_workers_and_goes_on(start):
    starts = "import subprocess\nsubprocess.run([sys.executable, '-c', WORKER])\n"
    worker = """
import sys
from astrollava_jax.data import workers
workers.begin()
def preparing():
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.read()
preparing()
"""
    parent = start(CHILD.replace("0.5", "60.0") + f"WORKER = {worker!r}\n" + starts)
    ready(parent)
    while parent.stderr.readline() != "ready\n":
        pass
    parent.send_signal(signal.SIGUSR2)
    told = ""
    while "in preparing" not in told:
        told += parent.stderr.readline()
    assert "in wait" in told and "which prepares data" in told
    assert parent.poll() is None


def test_a_child_does_not_outlive_its_parent(start, tmp_path):
    mark = tmp_path / "child"
    parent = start(CHILD + f"open({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    ready(parent)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.01)
    child = int(mark.read_text())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while "State:\tZ" not in status(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert "State:\tZ" in status(child), "the child is still there"


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_the_parent_costs_next_to_nothing(start):
    # The child beats without a pause for two seconds; it ends before the parent's limit.
    busy = "end = time.time() + 2\nwhile time.time() < end: heart.beat('step')\n"
    parent = start(CHILD + busy + "time.sleep(0.2)\n")
    ready(parent)
    before = status(parent.pid)
    seconds = cpu_seconds(parent.pid)
    time.sleep(1.8)
    seconds = cpu_seconds(parent.pid) - seconds
    kib = int(before.split("VmRSS:")[1].split()[0])
    assert parent.wait(30) == 0
    assert seconds < 0.05 and kib < 40_000, f"{seconds} s, {kib} KiB"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_parent_without_any_stream_shares_its_page_with_its_child():
    child = "import mmap, os; from astrollava_jax.cli.page import PAGE_BYTES; "
    child += "mmap.mmap(int(os.environ['ASTROLLAVA_HEARTBEAT'].split(':')[0]), PAGE_BYTES); "
    child += "os.kill(os.getpid(), 9)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    parent = subprocess.Popen([*shell, sys.executable, "-c", PARENT, "-c", child], env=environment)
    assert parent.wait(30) == RESUMABLE, "killed, after it had the page"


def test_the_parent_has_words_for_all_that_a_run_waits_for():
    assert set(WAITED_FOR) == set(get_args(Phase))
