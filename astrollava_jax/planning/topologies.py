"""Machines by name, and their description as the compiler wants it.

TPUs are described by libtpu, which is an ordinary package and needs no TPU (extra `plan`). A name
counts chips for v5e and v6e, and cores, two to a chip, for v4 and v5p: as Google counts.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # what is real lives there, and nothing opens a TPU
    "TPU_SKIP_MDS_QUERY": "1",  # off the cloud its metadata server is asked in vain, for minutes
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: compiles can run side by side
    "TPU_LOG_DIR": "disabled",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any valid value: without one it warns
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""Set before jax is first imported, unless the user has set it."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from its maker's data sheet, but for `usable_gib`."""

    kind: str
    """JAX's `device_kind`."""
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    usable_gib: float
    """Memory that a program may have: what the compiler says when it refuses one."""
    memory_gbps: float
    """GB/s between memory and cores."""
    link_gbps: float
    """GB/s of one link to a neighbour, one way."""
    torus_axes: int
    clock_ghz: float


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 30.75, 1228, 50, 3, 1.05),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75, 819, 50, 2, 1.5),
    "v5p": Chip("TPU v5", 459e12, 95.74, 2765, 100, 3, 1.75),
    "v6e": Chip("TPU v6 lite", 918e12, 31.25, 1640, 100, 2, 1.75),
}
"""By the first part of a topology's name."""

_FLAT = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16),
}  # fmt: skip
"""Chips -> the shape of a slice of v5e or v6e."""

_CUBES = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
    256: (4, 8, 8), 512: (8, 8, 8),
}  # fmt: skip
"""Chips -> the shape of a slice of v4 or v5p."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    wrap: tuple[bool, bool, bool]
    """Which axes are rings."""

    @property
    def chips(self) -> int:
        """How many."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    def devices(self) -> Sequence[Any]:
        """The chips, as a mesh takes them.

        Raises:
            ValueError: if libtpu is not installed.
        """
        from jax.experimental import topologies

        generation = self.name.split("-")[0]
        options: dict[str, Any] = {}
        if len(self.shape) == 3:
            options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
        elif self.chips == 1:
            options = {"chips_per_host_bounds": (1, 1, 1)}
        try:
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{generation}:{'x'.join(map(str, self.shape))}",
                num_slices=1,
                wrap=self.wrap,
                **options,
            )
        except Exception as error:  # whatever the plugin says when it is not there
            if "libtpu" not in str(error).lower():
                raise
            raise ValueError(
                f"{self.name}: TPUs are described by libtpu, which is not installed: pip install "
                "'astrollava_jax[plan]'"
            ) from error
        assert len(found.devices) == self.chips, (self.name, len(found.devices))
        return found.devices


def topology(name: str) -> Topology:
    """A machine by its name, such as v5e-16.

    Raises:
        ValueError: if there is none of this name; lists those there are.
    """
    match = re.fullmatch(r"(v4|v5e|v5p|v6e)-(\d+)", name)
    if match:
        generation, count = match[1], int(match[2])
        flat = generation in ("v5e", "v6e")
        shapes, chips = (_FLAT, count) if flat else (_CUBES, count // 2)
        if chips in shapes and (flat or count % 2 == 0):
            return Topology(name, CHIPS[generation], shapes[chips], _wrap(flat, chips))
    raise ValueError(f"expected a topology among {', '.join(names())}, found {name!r}")


def names() -> list[str]:
    """Every topology there is."""
    flat = [f"{kind}-{chips}" for kind in ("v5e", "v6e") for chips in _FLAT]
    return flat + [f"{kind}-{2 * chips}" for kind in ("v4", "v5p") for chips in _CUBES]


def _wrap(flat: bool, chips: int) -> tuple[bool, bool, bool]:
    if flat:
        return (chips >= 256, chips >= 128, False)
    return (chips >= 64,) * 3
