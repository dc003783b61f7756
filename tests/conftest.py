"""Eight simulated CPU devices, set before jax is first imported."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PJRT_NPROC", "16")  # fewer threads than devices starve a collective
os.environ["ASTROLLAVA_COMPILE_CACHE"] = "off"  # no test leaves anything in a home
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests compile much and run little: most of the time of a compilation goes into speed.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # XLA ends the process for a flag that it no longer has.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else "")
)
