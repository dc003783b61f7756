"""The machines that a step can be compiled for without having them: a table, and who reads it.

`v5e-N` and `v6e-N` count chips, `v4-N` and `v5p-N` count TensorCores, of which a chip has two that
work as one device: v5p-8 is four chips, and four devices of JAX.
"""

import dataclasses
import difflib
from typing import Any

from astrollava_jax.chips import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has, by its maker's data sheet unless said otherwise."""

    name: str
    """As JAX calls the kind of device."""
    hbm_bytes: int
    """Memory that a program may use, as the compiler has told it, less than the nominal."""
    bf16_flops: float
    """Dense FLOP/s in bfloat16."""
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    """Of one link between chips, one way."""
    ici_links: int
    clock_hertz: float
    """What the compiler's estimated cycles are counted by."""


def _chip(name: str, gibibytes: float, *others: Any) -> Chip:
    return Chip(name, int(gibibytes * GIB), PEAK_FLOPS[name], *others)


CHIPS = {
    "v4": _chip("TPU v4", 30.75, 1228e9, 50e9, 6, 1.05e9),
    "v5e": _chip("TPU v5 lite", 15.75, 819e9, 50e9, 4, 1.50e9),
    "v5p": _chip("TPU v5", 95.74, 2765e9, 100e9, 6, 1.75e9),
    "v6e": _chip("TPU v6 lite", 31.25, 1640e9, 100e9, 4, 1.75e9),
}

_OPEN = (False, False, False)
_CLOSED = (True, True, True)
_FLAT = {
    1: ("1x1", _OPEN),
    4: ("2x2", _OPEN),
    8: ("2x4", _OPEN),
    16: ("4x4", _OPEN),
    32: ("4x8", _OPEN),
    64: ("8x8", _OPEN),
    128: ("8x16", (False, True, False)),
    256: ("16x16", (True, True, False)),
}
_CUBIC = {
    8: ("2x2x1", _OPEN),
    16: ("2x2x2", _OPEN),
    32: ("2x2x4", _OPEN),
    64: ("2x4x4", _OPEN),
    128: ("4x4x4", _CLOSED),
    256: ("4x4x8", _CLOSED),
    512: ("4x8x8", _CLOSED),
    1024: ("8x8x8", _CLOSED),
}
_SIZES = {"v4": (_CUBIC, 2), "v5e": (_FLAT, 1), "v5p": (_CUBIC, 2), "v6e": (_FLAT, 1)}
"""Chip -> how its slices are laid out, by the number in their name; how many count as one chip."""

_ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
_TWO_CORES = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
"""Without `megacore`, both cores of a chip are devices of their own on v4."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some chips and how they are joined, in the words of the compiler."""

    name: str
    chip: Chip
    chips: int
    """JAX devices too."""
    topology_name: str
    wrap: tuple[bool, bool, bool]
    """Along which axes of the slice the last chip is joined to the first."""
    options: dict[str, Any]
    """What else describes it to the compiler."""

    def devices(self) -> list[Any]:
        """The described devices, in their order; needs libtpu, and no TPU."""
        from jax.experimental import topologies

        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=self.topology_name,
            num_slices=1,
            wrap=self.wrap,
            **self.options,
        )
        devices = list(described.devices)
        assert len(devices) == self.chips, f"{self.name}: {len(devices)} devices"
        return devices


def _table() -> dict[str, Topology]:
    found = {}
    for kind, (sizes, cores) in _SIZES.items():
        for number, (bounds, wrap) in sizes.items():
            chips = number // cores
            options = _TWO_CORES if cores == 2 else _ONE_CHIP if chips == 1 else {}
            name = f"{kind}-{number}"
            found[name] = Topology(name, CHIPS[kind], chips, f"{kind}:{bounds}", wrap, options)
    return found


TOPOLOGIES = _table()
"""By the names that their maker gives them."""


def topology(name: str) -> Topology:
    """The machine of a name.

    Raises:
        ValueError: if it is not in the table; lists what is.
    """
    if name in TOPOLOGIES:
        return TOPOLOGIES[name]
    close = difflib.get_close_matches(name, TOPOLOGIES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    kinds = [
        f"{kind}-N with N = {', '.join(map(str, sizes))} ({'chips' if cores == 1 else 'cores'})"
        for kind, (sizes, cores) in _SIZES.items()
    ]
    raise ValueError(f"{name!r} is no known topology{hint}\nknown are:\n  " + "\n  ".join(kinds))
