"""Scheduled programs of one computation, or two, to replay by hand."""

from pathlib import Path

from astrollava_jax.planning.topologies import Chip

CHIP = Chip("a round chip", 10**9, 1e12, 1e9, 1e9 / 0.93, 4, 1e9)
"""A cycle is a nanosecond; memory and links move a byte in one."""

_HERE = Path(__file__).parent / "planning"

FSDP = (_HERE / "fsdp_v5e4.hlo").read_text()
"""Four layers of a gated MLP, 2048 to 4096, and their gradients: one row of 1024 on each of four
chips, as libtpu 0.0.42.1 compiled it for v5e-4; names, layouts and estimates only."""
SPLASH = (_HERE / "splash_v5e4.hlo").read_text()
"""Splash attention and its gradients by the same: 2 rows of 2048 on each of four chips, 4 heads of
64, 2 for keys and values."""

US = 1e-6
KB = "s8[1000]{0}"


def program(*lines: str, before: str = "") -> str:
    """A program of four chips whose own computation has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return (
        f"HloModule jit_step, is_scheduled=true, num_partitions=4\n\n{before}\n"
        f"ENTRY %main (a: s8[1000]) -> s8[1000] {{\n  %a = {KB} parameter(0)\n{body}\n}}\n"
    )


def computation(name: str, *lines: str) -> str:
    """One that the program calls."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"{name} (p: {KB}) -> {KB} {{\n{body}\n}}\n\n"


def work(microseconds: int, name: str = "%work") -> str:
    """Something to compute, which takes so long on `CHIP`."""
    cycles = 1000 * microseconds
    config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f"{name} = {KB} fusion(%a), kind=kLoop, calls=%inner, {config}"
