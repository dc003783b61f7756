"""Runs as a launcher starts them: real processes, real signals, and what they left behind."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RESUMABLE = 75


def environment(devices: int, **more: str) -> dict[str, str]:
    """What a process of a run on the CPU finds around it: so many devices of its own."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    ours = {name: value for name, value in os.environ.items() if "ASTROLLAVA_" not in name}
    return ours | {
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "16",
        "XLA_FLAGS": flags,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **more,
    }


@dataclasses.dataclass
class Ended:
    """How one process ended, and all that it said."""

    code: int
    told: str


class Processes:
    """A run as several processes, begun at once; a block of `with` leaves none behind.

    Args:
        file: the run's YAML file.
        out: its run directory, given as an override.
        count: processes.
        devices: of each process.
        overrides: further keys of the file, `{"steps": 4}`.
        each: overrides of single processes, by number.
        variables: of the environment.
        compiled: a folder that keeps compiled programs.
    """

    def __init__(
        self,
        file: str,
        out: Path,
        count: int = 1,
        devices: int = 1,
        *,
        overrides: Mapping[str, object] = {},
        each: Mapping[int, Mapping[str, object]] = {},
        variables: Mapping[str, str] = {},
        compiled: str | None = None,
    ):
        self.out = out
        address = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen] = []
        self._told: list[Path] = []
        for number in range(count):
            words = {"out": out, **overrides, **each.get(number, {})}
            command = [sys.executable, "-m", "astrollava_jax", "train", file]
            command += [word for key, value in words.items() for word in (f"--{key}", f"{value}")]
            around = environment(devices, **variables)
            if compiled is not None:
                around["JAX_COMPILATION_CACHE_DIR"] = compiled
            if count > 1:
                around |= {
                    "ASTROLLAVA_COORDINATOR": address,
                    "ASTROLLAVA_PROCESSES": str(count),
                    "ASTROLLAVA_PROCESS": str(number),
                }
            self._told.append(out.parent / f"{out.name}.{number}.{time.time_ns()}.told")
            with self._told[-1].open("wb") as told:
                self.processes.append(
                    subprocess.Popen(command, env=around, stdout=told, stderr=subprocess.STDOUT)
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() is None:
                for child in self.tree(number):
                    _send(child, signal.SIGKILL)
                process.wait()

    def __getitem__(self, number: int) -> subprocess.Popen:
        """What was started: the parent that watches."""
        return self.processes[number]

    def child(self, number: int) -> int:
        """The process that trains, which the one that was started has started."""
        return self.tree(number)[1]

    def tree(self, number: int) -> list[int]:
        """What was started and all that descends from it, parents first."""
        found = [self.processes[number].pid]
        for parent in found:
            found += children(parent)
        return found

    def lines(self) -> list[dict]:
        """The whole lines of `log.jsonl` as they stand."""
        return lines(self.out)

    def wait_for_step(self, step: int, seconds: float = 120.0) -> None:
        """Returns once the log tells of a step; raises when a process ends before."""
        self.wait_until(
            lambda: any(line["step"] >= step and "loss" in line for line in self.lines()), seconds
        )

    def wait_until(
        self, come: Callable[[], bool], seconds: float = 120.0, *, ending: bool = False
    ) -> None:
        """Returns once something has come; raises when time is over, or a process.

        With `ending`, processes may end.
        """
        end = time.monotonic() + seconds
        while not come():
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            assert ending or not ended, f"ended with {ended}:\n" + "\n".join(self.told())
            assert time.monotonic() < end, "nothing came:\n" + "\n".join(self.told())
            time.sleep(0.005)

    def signal(self, number: int, what: signal.Signals, *, child: bool = False) -> None:
        """Sends a signal to what was started, or to the process that trains."""
        _send(self.child(number) if child else self.processes[number].pid, what)

    def kill(self, number: int) -> None:
        """What a machine that vanishes does: all processes of it end, at once."""
        for process in self.tree(number):
            _send(process, signal.SIGKILL)

    def told(self) -> list[str]:
        """What each process has said so far."""
        return [path.read_text(errors="replace") for path in self._told]

    def ended(self, seconds: float = 120.0) -> list[Ended]:
        """Waits for the end of all."""
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError("still there:\n" + "\n".join(self.told())) from None
        codes = [process.returncode for process in self.processes]
        return [Ended(code, told) for code, told in zip(codes, self.told())]

    def complete(self, seconds: float = 120.0) -> list[Ended]:
        """Waits for the end of all, which must be the run's."""
        ended = self.ended(seconds)
        assert [one.code for one in ended] == [0] * len(ended), "\n".join(self.told())
        return ended


def lines(out: Path) -> list[dict]:
    """The whole lines of a run's `log.jsonl` as they stand."""
    path = out / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        found = [(thread / "children").read_text().split() for thread in threads]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for line in found for child in line]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)
