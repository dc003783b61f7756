"""Compiled programs are kept, so that the same run starts at once the next time."""

import hashlib
import os
import platform

import jax

from astrollava_jax import files

VARIABLE = "ASTROLLAVA_COMPILE_CACHE"
"""`off`, or the folder to keep them in."""


def keep_compiled() -> str | None:
    """Has JAX keep what it compiles from here on; gives the folder, or None where it does not.

    What takes a second or more is kept. A folder that JAX was told of before stays. Several
    processes on GPUs must name the folder, which all of them see: those that find a program wait
    for nobody, while XLA has those that compile it share the search for its fastest kernels.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore
        return jax.config.jax_compilation_cache_dir  # pyright: ignore
    wanted = os.environ.get(VARIABLE, "")
    alone = jax.process_count() == 1 or jax.default_backend() != "gpu"
    if wanted == "off" or not (wanted or alone):
        return None
    folder = files.join(wanted or _of_this_user(), _processor())
    try:
        files.make_folder(folder)
    except OSError:
        return None  # nothing is lost but time
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


def _of_this_user() -> str:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return files.join(caches, "astrollava_jax", "xla")


def _processor() -> str:
    """What a program for this machine's processor runs on: a home may be shared by others.

    JAX's own key of a program knows of no processor.
    """
    known = [platform.machine()]
    if files.exists("/proc/cpuinfo"):
        lines = files.read_text("/proc/cpuinfo").splitlines()
        known += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return f"{known[0]}-{hashlib.sha256(repr(known).encode()).hexdigest()[:12]}"
