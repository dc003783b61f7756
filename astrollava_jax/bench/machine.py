"""On what a figure was measured: the processor, how busy it was, the versions, the day."""

import datetime
import importlib.metadata
import os
import platform
import re

from astrollava_jax import files

LIBRARIES = ("jax", "numpy", "grain", "pillow", "simplejpeg", "tokenizers", "transformers", "torch")


def described() -> str:
    """One line for a person."""
    versions = [f"{name} {found}" for name in LIBRARIES if (found := _version(name))]
    return (
        f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, " + ", ".join(versions)
    )


def _processor() -> str:
    facts = "/proc/cpuinfo"
    text = files.read_text(facts) if files.exists(facts) else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
