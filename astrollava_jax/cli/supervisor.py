"""The parent of a run: passes signals on, ends a run that hangs, and says how it ended.

The run itself is a child: what hangs in C++, is stopped, or is aborted from there, can neither
watch itself nor choose its exit code. The parent imports nothing heavy and sleeps. What the child
waits for stands in a page of memory that both see (`training.watchdog` writes it).
"""

import contextlib
import faulthandler
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from astrollava_jax.cli import stacks
from astrollava_jax.cli.page import Page
from astrollava_jax.cli.stacks import STACKS

HEARTBEAT, UNWATCHED = "ASTROLLAVA_HEARTBEAT", "ASTROLLAVA_UNWATCHED"
"""`FD:PID`, for the child; set the second one to have no parent, as for a debugger."""

BEGAN = "ASTROLLAVA_BEGAN"
"""When the command that was typed began, in seconds since 1970; a child has it from its parent."""

RESUMABLE, FAILED = 75, 1

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What asks a run to end; for the child all of them are SIGTERM."""

AGAIN_SECONDS = 0.5
LOOK_SECONDS = 1.0
ENDING_SECONDS, ENDING_PART = 5.0, 1 / 5
"""What it takes to tell of a hang and to end it, at most this part of the time that is allowed; the
end begins so much earlier."""
STACKS_PART, STACKS_SECONDS = 0.4, 0.5
"""Of it, in which stacks are printed, and what that gets at least."""
KILL_SECONDS = 10.0
ASLEEP_SECONDS = 5.0
"""Waking so much later than planned, the parent was stopped or the machine slept: no hang."""

WAITED_FOR = {
    "start": "the start: other processes, records, weights",
    "input": "input",
    "step": "a step: the devices, or a collective with the other processes",
    "checkpoint": "a checkpoint: the disk, or the other processes",
    "evaluate": "the held-out evaluation: input, the devices or a collective",
    "log": "the log",
    "profile": "a trace: the profiler, the disk, or the other processes",
    "end": "its end",
}

ENDS: dict[signal.Signals, tuple[int, str]] = {
    signal.SIGKILL: (RESUMABLE, "; if nobody did it, the machine has run out of memory"),
    **dict.fromkeys(STOPPING, (RESUMABLE, "")),
}
"""By which signal a run ended -> the exit code, and what to say besides. Others are failures."""

PEER_ENDS = (signal.SIGABRT,)
"""How JAX ends, from C++, the processes whose peer is gone."""


def wanted(argv: Sequence[str]) -> bool:
    """Whether a command gets a parent: not what only prints, nor what has one or wants none."""
    silent = {"-h", "--help", "--dry-run"} & set(argv)
    return not silent and not {HEARTBEAT, UNWATCHED} & set(os.environ)


def note_began() -> None:
    """Keeps when this process began: what announces the end of the machine since then is news."""
    began = time.time()
    with contextlib.suppress(OSError, AttributeError):  # where the system does not tell
        with os.fdopen(os.open("/proc/self/stat", os.O_RDONLY)) as handle:
            ticks = int(handle.read().rpartition(")")[2].split()[19])  # since the machine began
        began -= time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    os.environ.setdefault(BEGAN, repr(began))


def supervise(argv: Sequence[str]) -> int:
    """Runs a command as a child; returns the exit code for whoever started this process."""
    return _Supervisor([sys.executable, "-m", "astrollava_jax", *argv]).run()


def begin_child() -> bool:
    """Makes this process the child of a parent that watches it, if it has one."""
    number, _, parent = os.environ.pop(HEARTBEAT, "").partition(":")
    if not parent:
        return False
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never longer than the parent
    if os.getppid() != int(parent):
        os._exit(RESUMABLE)  # it has gone meanwhile
    # In a group of its own, it would be stopped for writing to some terminals.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    faulthandler.enable(all_threads=True)
    stacks.answer()
    if number:
        os.set_inheritable(int(number), False)
        os.environ[HEARTBEAT] = f"{number}:{os.getpid()}"
    return True


def end_child(code: int) -> None:
    """Ends the child at once; nothing waits for another process at the interpreter's end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed at the start
            with contextlib.suppress(OSError):
                stream.flush()
    os._exit(code)


class _Supervisor:
    def __init__(self, command: Sequence[str]):
        self._command = command
        self._page = Page()
        self._arrived: list[int] = []
        self._interrupted_at: float | None = None
        self._awake_since = time.monotonic()

    def run(self) -> int:
        """Watches from the start to the end."""
        with _waking(self._arrived) as waker:
            environment = {**os.environ, HEARTBEAT: f"{self._page.descriptor}:{os.getpid()}"}
            self._child = subprocess.Popen(
                self._command,
                env=environment,
                pass_fds=[self._page.descriptor] if self._page.descriptor is not None else [],
                process_group=0,  # a Ctrl-C comes here alone, and is passed on
            )
            while True:
                pause = max(0.0, min(LOOK_SECONDS, self._left(self._page.read())))
                planned = time.monotonic() + pause
                if select.select([waker], [], [], pause)[0]:
                    os.read(waker, 512)
                if time.monotonic() > planned + ASLEEP_SECONDS:
                    self._awake_since = time.monotonic()
                code = self._pass_on()
                if code is None:
                    code = self._ended()
                if code is None:
                    code = self._overstayed()
                if code is not None:
                    return code

    def _pass_on(self) -> int | None:
        """Does what signals ask for; an exit code if that is the end."""
        while self._arrived:
            number = signal.Signals(self._arrived.pop(0))
            if number == STACKS:
                self._print_stacks(STACKS_SECONDS)
            elif number == signal.SIGTSTP:
                self._pause()
            elif self._child.poll() is None and self._stop(number):
                self._kill()
                return RESUMABLE
        return None

    def _stop(self, number: signal.Signals) -> bool:
        """Asks the child to stop; says whether it is to be ended at once."""
        if self._page.read().get("nothing_to_save", True):
            _say(f"{number.name}: stopped; the same command goes on")
            return True
        if number == signal.SIGINT:
            now, before = time.monotonic(), self._interrupted_at
            if before is not None and now - before >= AGAIN_SECONDS:
                _say("stopped at once; the same command goes on from the last checkpoint")
                return True
            if before is None:
                self._interrupted_at = now
                _say("Ctrl-C: finishing the step and saving it; once more to stop at once")
        self._child.send_signal(signal.SIGTERM)
        return False

    def _pause(self) -> None:
        """Ctrl-Z stops both; the parent comes back here when it goes on."""
        self._child.send_signal(signal.SIGSTOP)
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self._child.send_signal(signal.SIGCONT)
        self._awake_since = time.monotonic()

    def _ended(self) -> int | None:
        """The exit code, if the child has ended."""
        code = self._child.poll()
        if code is None or code >= 0:
            return code
        number = signal.Signals(-code)
        facts = self._page.read()
        several = (
            facts.get("processes", 1) > 1 or os.environ.get("ASTROLLAVA_PROCESSES", "1") != "1"
        )
        if number in PEER_ENDS and several:
            _say(f"another process of the run is gone; ended {_waiting(facts)}")
            return RESUMABLE
        result, told = ENDS.get(number, (FAILED, ""))
        _say(f"the run was ended by {number.name} {_waiting(facts)}{told}")
        return result

    def _left(self, facts: dict[str, Any]) -> float:
        """Seconds until a child that makes no progress any more is to be ended."""
        if facts.get("limit") is None:
            return math.inf
        since, limit = max(facts["at"], self._awake_since), facts["limit"]
        return since + limit - _ending_seconds(limit) - time.monotonic()

    def _overstayed(self) -> int | None:
        """Ends a child that has made no progress for longer than it may."""
        facts = self._page.read()
        if self._left(facts) > 0:
            return None
        waited, limit = time.monotonic() - max(facts["at"], self._awake_since), facts["limit"]
        stopped = stacks.is_stopped(self._child.pid)
        how = ", and the process is stopped, by SIGSTOP or a debugger" * stopped
        _say(
            f"no progress for {waited:.0f} s, and within {limit:.0f} s it must be ended; "
            f"this was {_waiting(facts)}{how}. The stacks of its threads:"
        )
        self._print_stacks(max(STACKS_SECONDS, _ending_seconds(limit) * STACKS_PART))
        self._kill()
        _say("the run hung and was ended; the same command goes on from the last checkpoint")
        return RESUMABLE

    def _print_stacks(self, seconds: float) -> None:
        """Has the child print the stacks of its threads, then each of its workers, in that time."""
        self._child.send_signal(STACKS)
        self._child.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds / 2)
        helpers = stacks.helpers(self._child.pid)
        for helper in helpers:
            _say(f"the stacks of process {helper}, which prepares data:")
            with contextlib.suppress(ProcessLookupError):
                os.kill(helper, STACKS)
            time.sleep(seconds / 2 / len(helpers))

    def _kill(self) -> None:
        self._child.kill()
        try:
            self._child.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            _say(f"process {self._child.pid} waits in the kernel, for a disk perhaps, and stays")


@contextlib.contextmanager
def _waking(arrived: list[int]) -> Iterator[int]:
    """Notes the signals that arrive; what it gives can be read then."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*STOPPING, STACKS, signal.SIGTSTP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: arrived.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # its end wakes too
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number in STOPPING:  # what is to be said is decided
            signal.signal(number, signal.SIG_IGN)


def _ending_seconds(limit: float) -> float:
    return min(ENDING_SECONDS, limit * ENDING_PART)


def _waiting(facts: dict[str, Any]) -> str:
    """What a child was waiting for, and for how long."""
    if "phase" not in facts:
        return "before it began"
    seconds = time.monotonic() - facts["at"]
    detail = f" ({facts['detail']})" if facts["detail"] else ""
    return f"while it waited for {WAITED_FOR[facts['phase']]}{detail}, for {seconds:.0f} s"


def _say(told: str) -> None:
    with contextlib.suppress(OSError):  # who listened can be gone, and the child would go with us
        print(f"astrollava: {told}", file=sys.stderr, flush=True)
