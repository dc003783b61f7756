"""What libtpu is told where no TPU is: all that is wanted of it there is its compiler."""

import os

WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # no server that would describe one is looked for
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any; `plan` gives the compiler its topology itself
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans side by side
}
"""Without these it complains on stderr in each program that asks JAX for its devices."""

CHIPS = ("/dev/accel0", "/dev/vfio")
"""Where Linux shows TPUs; some other devices are in the second place too."""


def tell() -> None:
    """Tells it; it reads the environment when JAX loads it. What is set already stays."""
    for name, value in WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)


def tpu_is_here() -> bool:
    """Whether this machine shows one."""
    return any(map(os.path.exists, CHIPS))


def tell_unless_a_tpu_is_here() -> None:
    """For commands that use what devices there are."""
    if not tpu_is_here():
        tell()
