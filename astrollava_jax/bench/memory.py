"""Runs a command and measures the memory that its process holds. Linux only."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from astrollava_jax import files

_SAMPLE_SECONDS = 0.01


class Used(NamedTuple):
    """What a process took."""

    seconds: float
    held_bytes: int
    """The most memory of its own (RssAnon + RssShmem), sampled. Mapped files are not in it: the
    system takes their pages back whenever it needs room."""
    resident_bytes: int
    """The most resident memory (VmHWM), mapped files and libraries included, to the byte."""

    @property
    def facts(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "seconds": round(self.seconds, 1),
            "held_gb": self.held_bytes / 1e9,
            "resident_gb": self.resident_bytes / 1e9,
        }


def measured(arguments: Sequence[str]) -> Used:
    """Runs `python -m` with some arguments to its end, in a process of its own.

    Raises:
        RuntimeError: if it fails; what it has to say stands on stderr.
    """
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    held = resident = 0
    try:
        while process.poll() is None:
            now = status(process.pid)
            held = max(held, now.get("RssAnon", 0) + now.get("RssShmem", 0))
            resident = max(resident, now.get("VmHWM", 0))
            time.sleep(_SAMPLE_SECONDS)
    finally:
        process.kill()  # where this one is stopped itself
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: ended with {process.returncode}")
    return Used(time.monotonic() - start, held, resident)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", files.read_text("/proc/cpuinfo"))
    total = re.search(r"MemTotal:\s*(\d+) kB", files.read_text("/proc/meminfo"))
    assert total is not None
    return {
        "processor": model[1] if model else "unknown",
        "cores": str(os.cpu_count()),
        "memory": f"{int(total[1]) / 2**20:.1f} GiB",
    }


def status(pid: int) -> dict[str, int]:
    """The sizes, in bytes, that the system tells of a process; none once it has ended."""
    try:
        text = files.read_text(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
