"""Several processes as one run: how they find each other, and what they must have in common.

They share one file system and one config. Process 0 writes what is written once; what it decides by
a clock, a signal or a file, the others are told (`sharding.agree`).
"""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import cloud_tpu_init, distributed  # there is no public way to what they know
from jax._src.clusters import GceTpuCluster

from astrollava_jax.config import differences
from astrollava_jax.sharding import PeerFailed, agree, fail, gather
from astrollava_jax.training.preemption import Resumable

COORDINATOR, COUNT, INDEX = "ASTROLLAVA_COORDINATOR", "ASTROLLAVA_PROCESSES", "ASTROLLAVA_PROCESS"
"""Address (host:port) of process 0; how many processes there are; which of them this one is."""

LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",  # mpirun of Open MPI
    "PMI_SIZE": "PMI_RANK",  # mpiexec of MPICH and its kin
}
"""Variables by which launchers say how many processes they started, and which of them this is."""

JOB_INDEX = "JOB_COMPLETION_INDEX"
"""What an indexed Job of Kubernetes tells each of its pods; it does not tell how many they are."""

PACKAGES = (
    "jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy", "tokenizers", "transformers"
)  # fmt: skip
"""Those whose version decides what is computed, in which order, or how it is written."""

COUNTED = "astrollava/moved"
"""The name of the number that all processes see."""

JOINING_SECONDS = 600
"""In which all processes must have been started."""

GONE_CODES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
"""Status codes of JAX's runtime that tell of who does not answer,"""

BETWEEN_PROCESSES = ("gloo", "nccl", "coordination")
"""and parts of it whose errors, of any code, are of other processes."""


class PeerGone(Resumable):
    """Another process of the run has ended, or is not reached any more."""


@contextlib.contextmanager
def joined(bound_seconds: float) -> Iterator[None]:
    """Inside, the processes that were started together are one run; one alone stays alone.

    Args:
        bound_seconds: in which the others have to notice that one is gone.

    Raises:
        PeerGone: if another process ends, or is not found.
        ValueError: if the environment tells of processes in a way that cannot be.
    """
    if not _initialize(bound_seconds):
        if jax.process_count() > 1:
            raise ValueError(
                f"these devices belong to {jax.process_count()} processes, which have not met: set "
                f"{COORDINATOR}, {COUNT} and {INDEX} for each of them"
            )
        yield
        return
    try:
        yield
    except Resumable:
        _leave()
        raise
    except Exception as error:
        if not _of_a_peer(error):
            raise
        told = next(iter(str(error).splitlines()), "")[:300]
        raise PeerGone(f"another process of this run has ended or hangs ({told})") from error
    else:
        _leave()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Inside, a mistake that one process finds ends all of them; the others say whose it is."""
    try:
        yield
    except PeerFailed:
        raise
    except (ValueError, OSError) as error:
        fail(str(error))
        raise


def first(action: Callable[[], Any]) -> Any:
    """What process 0 gets of an action that the others leave to it; anything that JSON can tell.

    The others wait for it; they learn of an error where it is raised inside `failing_together`.
    """
    return agree(action() if jax.process_index() == 0 else None)


def count_together(add: int) -> int | None:
    """Adds to a number that all processes of the run see, and gives it; None if it is not known.

    JAX's coordination service keeps it: past the disks, which may be the reason why somebody asks,
    and past the caches of shared folders. It may be called from any thread, and waits for nobody
    but process 0.
    """
    client = distributed.global_state.client
    if client is None:
        return None
    try:
        return client.key_value_increment(COUNTED, add)
    except jax.errors.JaxRuntimeError:  # the run is ending
        return None


def alike(facts: dict[str, Any]) -> None:
    """Checks that all processes say the same of what must be.

    Raises:
        ValueError: if some do not; names them, and what is different there.
    """
    said = gather(facts)
    faults = [
        f"process {number}: {line}"
        for number, other in enumerate(said)
        for line in differences(said[0], other)
    ]
    if faults:
        raise ValueError(
            "the processes of a run must be alike; start them with the same file, programs and "
            "data (process 0 -> the other):\n  " + "\n  ".join(faults)
        )


def machine() -> dict[str, Any]:
    """What must be the same of the programs and devices of all processes."""
    devices = jax.local_devices()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": {
            "local": len(devices), "all": jax.device_count(), "kind": devices[0].device_kind,
            "platform": devices[0].client.platform_version,
        },
    }  # fmt: skip


def _initialize(bound_seconds: float) -> bool:
    """Joins the other processes, if there are some."""
    launched = [name for name in LAUNCHERS if _number(name) > 1]
    stated = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if name in os.environ}
    arguments = _arguments(stated) if stated else {}
    if arguments.get("num_processes") == 1:
        return False
    if not arguments and not launched and _tpu_processes() == 1:
        return False
    within = max(5, int(bound_seconds / 2))
    where = stated.get(COORDINATOR, f"what {', '.join(launched) or 'the TPU machine'} says")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=JOINING_SECONDS,
            heartbeat_timeout_seconds=within,
            shutdown_timeout_seconds=within,
        )
    except jax.errors.JaxRuntimeError as error:
        raise PeerGone(f"the processes of this run did not meet at {where}: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"several processes were started, but nothing that JAX knows says where they meet "
            f"({error}): set {COORDINATOR} to host:port of the first of them, the same for all"
        ) from error
    return jax.process_count() > 1


def _number(name: str) -> int:
    """What a launcher says; 1 where it says nothing that is a number."""
    said = os.environ.get(name, "")
    return int(said) if said.isdigit() else 1


def _arguments(stated: dict[str, str]) -> dict[str, Any]:
    """What is stated by hand; the number of processes, and of this one, a launcher may say."""
    numbers = [(COUNT, JOB_INDEX), *LAUNCHERS.items()] if INDEX not in stated else []
    if COUNT in stated:
        numbers = numbers[:1]
    there = [pair for pair in numbers if all(name in os.environ for name in pair)]
    count, index = there[0] if there else (COUNT, INDEX)
    missing = [name for name in (COORDINATOR, count, index) if name not in os.environ]
    if missing:
        raise ValueError(f"the environment has {', '.join(stated)}: set {', '.join(missing)} too")
    several, number = os.environ[count], os.environ[index]
    if not (several.isdigit() and number.isdigit() and int(number) < int(several)):
        raise ValueError(
            f"expected {index} to be a number from 0 on, less than that in {count}, found "
            f"{number!r} and {several!r}"
        )
    return {
        "coordinator_address": stated[COORDINATOR],
        "num_processes": int(several),
        "process_id": int(number),
        # What else a launcher says would leave a process one device of its machine's only.
        "cluster_detection_method": "deactivate",
    }


def _tpu_wanted() -> bool:
    """Whether JAX has not been told to use something else than TPUs, as the quickstart does."""
    platforms = jax.config.jax_platforms  # pyright: ignore
    return not platforms or "tpu" in platforms


def _tpu_processes() -> int:
    """How many machines hold the TPUs of which some are here; 1 where there are none."""
    if not (cloud_tpu_init.running_in_cloud_tpu_vm and _tpu_wanted()):
        return 1
    named = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if named is not None:  # Kubernetes; of one slice, if it does not tell of several
        return len(named.split(",")) * int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
    try:
        there = GceTpuCluster.is_env_present()
        return GceTpuCluster.get_process_count() if there else 1
    except OSError:  # no one tells: not a machine of Compute Engine
        return 1


def _leave() -> None:
    """Waits until all processes have come here, within the bound, so that none misses another."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _of_a_peer(error: BaseException | None) -> bool:
    """Whether an error comes of another process's end, in whichever library it is met."""
    while error is not None:
        if isinstance(error, TimeoutError):  # Orbax's barriers: who waits in vain waits for another
            return True
        code, told = _status(error)
        if code in GONE_CODES or any(part in told for part in BETWEEN_PROCESSES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _status(error: BaseException) -> tuple[str, str]:
    """The status code of an error of JAX's runtime and what it tells, in lower case; else nothing.

    The runtime raises a ValueError too, where the numbers of an array are asked for.
    """
    found = re.match(r"([A-Z_]+): (.*)", str(error), re.DOTALL)
    if found is None or not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        return "", ""
    return found[1], found[2].lower()
