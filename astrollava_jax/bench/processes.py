"""Runs as a launcher starts them: real processes, real signals, and what they left behind. Linux.

They run on simulated devices of the CPU, which all processes of a run together have.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from astrollava_jax import files

RESUMABLE = 75

PATIENCE = 900.0
"""Seconds in which what is waited for must come, also where many programs share the machine.

A process whose peer has ended before they met waits for it, for ten minutes.
"""


class Ended(NamedTuple):
    """How one process ended, and all that it said."""

    code: int
    told: str
    seconds: float
    """From when somebody began to wait for it."""


class Processes:
    """`astrollava train` in several processes, begun at once; a `with` block leaves none behind.

    Args:
        file: the run's YAML file.
        out: its run directory, given as an override.
        count: processes.
        devices: of each process.
        overrides: further keys of the file, `{"steps": 4}`.
        each: overrides of single processes, by number.
        variables: of the environment.
        compiled: a folder that keeps compiled programs.
        program: what Python runs, if it is not `astrollava train`.
    """

    def __init__(
        self,
        file: str,
        out: files.Where,
        count: int = 1,
        devices: int = 1,
        *,
        overrides: Mapping[str, object] | None = None,
        each: Mapping[int, Mapping[str, object]] | None = None,
        variables: Mapping[str, str] | None = None,
        compiled: str | None = None,
        program: Sequence[str] = ("-m", "astrollava_jax", "train"),
    ):
        self.out = str(out)
        address = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen] = []
        self._told: list[int] = []
        self._last_told: list[str] | None = None
        for number in range(count):
            words = {"out": out, **(overrides or {}), **(each or {}).get(number, {})}
            command = [sys.executable, *program, file]
            command += [word for key, value in words.items() for word in (f"--{key}", f"{value}")]
            around = environment(devices, **(variables or {}))
            if compiled is not None:
                around["JAX_COMPILATION_CACHE_DIR"] = compiled
                around["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            if count > 1:
                around |= {
                    "ASTROLLAVA_COORDINATOR": address,
                    "ASTROLLAVA_PROCESSES": str(count),
                    "ASTROLLAVA_PROCESS": str(number),
                }
            told = os.memfd_create("told")
            self._told.append(told)
            self.processes.append(
                subprocess.Popen(command, env=around, stdout=told, stderr=subprocess.STDOUT)
            )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(number)
                process.wait()
        self._last_told = self.told()
        for told in self._told:
            os.close(told)

    def __getitem__(self, number: int) -> subprocess.Popen:
        """What was started: the parent that watches."""
        return self.processes[number]

    def __len__(self) -> int:
        return len(self.processes)

    def child(self, number: int) -> int:
        """The process that trains, which the one that was started has started."""
        return self.tree(number)[1]

    def tree(self, number: int) -> list[int]:
        """What was started and all that descends from it, parents first."""
        found = [self.processes[number].pid]
        for parent in found:
            found += children(parent)
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of `log.jsonl` as they stand."""
        return lines(self.out)

    def wait_for_step(self, step: int, seconds: float | int = PATIENCE) -> None:
        """Returns once the log tells of a step; raises when a process ends before."""
        self.wait_until(
            lambda: any(line["step"] >= step and "loss" in line for line in self.lines()), seconds
        )

    def wait_until(
        self, come: Callable[[], bool], seconds: float | int = PATIENCE, *, ending: bool = False
    ) -> None:
        """Returns once something has come.

        Raises:
            RuntimeError: if a process ends before, unless it is about to (`ending`), or time does.
        """
        end = time.monotonic() + seconds
        while not come():
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            if (ended and not ending) or time.monotonic() > end:
                why = f"ended with {ended}" if ended else "nothing came"
                raise RuntimeError(f"{self.out}: {why}:\n" + "\n".join(self.told()))
            time.sleep(0.002)

    def signal(self, number: int, what: signal.Signals, *, child: bool = False) -> None:
        """Sends a signal to what was started, or to the process that trains."""
        _send(self.child(number) if child else self.processes[number].pid, what)

    def kill(self, number: int) -> None:
        """What a machine that vanishes does: all processes of it end, at once."""
        for process in self.tree(number):
            _send(process, signal.SIGKILL)

    def told(self) -> list[str]:
        """What each process has said so far."""
        if self._last_told is not None:
            return self._last_told
        # The place in each file is shared with the process that writes: it is not moved.
        contents = [os.pread(told, os.fstat(told).st_size, 0) for told in self._told]
        return [content.decode(errors="replace") for content in contents]

    def ended(self, seconds: float | int = PATIENCE) -> list[Ended]:
        """Waits for the end of all.

        Raises:
            RuntimeError: if one does not end in time.
        """
        began = time.monotonic()
        took: dict[int, float] = {}
        while len(took) < len(self.processes):
            for number, process in enumerate(self.processes):
                if number not in took and process.poll() is not None:
                    took[number] = time.monotonic() - began
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"{self.out}: still there:\n" + "\n".join(self.told()))
            time.sleep(0.01)
        return [
            Ended(process.returncode, told, took[number])
            for number, (process, told) in enumerate(zip(self.processes, self.told()))
        ]

    def complete(self, seconds: float | int = PATIENCE) -> list[Ended]:
        """Waits for the end of all, which must be the run's.

        Raises:
            RuntimeError: if one ends otherwise.
        """
        ended = self.ended(seconds)
        if codes := [one.code for one in ended if one.code != 0]:
            raise RuntimeError(f"{self.out}: ended with {codes}:\n" + "\n".join(self.told()))
        return ended


def environment(devices: int, **more: str) -> dict[str, str]:
    """What a process of a run on the CPU finds around it: so many devices of its own."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    ours = {name: value for name, value in os.environ.items() if "ASTROLLAVA_" not in name}
    return ours | {
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "16",  # fewer threads than devices starve a collective
        "XLA_FLAGS": flags,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **more,
    }


def lines(out: files.Where) -> list[dict[str, Any]]:
    """The whole lines of a run's `log.jsonl` as they stand."""
    path = files.join(out, "log.jsonl")
    text = files.read_text(path) if files.exists(path) else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it can end meanwhile
        for thread in files.names(f"/proc/{pid}/task"):
            found += map(int, files.read_text(f"/proc/{pid}/task/{thread}/children").split())
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)
