"""Ranks settings of a run by the modelled time of their compiled steps.

Only the ranking is meant: see `roofline.reliance`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

from astrollava_jax.planning.schedule import Modelled, modelled
from astrollava_jax.planning.topologies import GIB, Chip
from astrollava_jax.sharding import RULES


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run the same step."""

    mesh: tuple[tuple[str, int], ...]
    """Axis and how many ways; axes of one way are left out."""
    rows: int
    """That the chips which share a tensor compute in a step; those of one chip, where none do."""
    remat: str
    options: tuple[tuple[str, bool | int | str], ...] = ()
    """All that the compiler is told."""
    options_name: str | None = dataclasses.field(default=None, compare=False)
    """What the table calls the options, where they are many."""

    def __post_init__(self):
        split = tuple((axis, size) for axis, size in self.mesh if size > 1)
        object.__setattr__(self, "mesh", split)
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    @property
    def chips(self) -> int:
        """How many it runs on."""
        return math.prod(size for _, size in self.mesh)

    @property
    def rows_per_chip(self) -> float:
        """Less than `rows` where several chips share a tensor."""
        groups = math.prod(size for axis, size in self.mesh if axis in RULES["batch"])
        return self.rows * groups / self.chips

    def __str__(self):
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh) or "one chip"
        told = [mesh, f"{self.rows_per_chip:g} rows per chip", f"remat {self.remat}"]
        options = [f"{name}={value}" for name, value in self.options]
        return ", ".join(told + (options if self.options_name is None else [self.options_name]))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a setting."""

    fits: bool
    peak_bytes: int | None = None
    """On one chip; None if the compiler did not get so far."""
    text: str | None = None
    """The scheduled program; None if there is none."""
    why: str = ""
    """There is none: the compiler's own words."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: Setting
    compiled: Compiled
    step: Modelled | None
    """None if it does not fit, or nothing that it computes has a time."""
    tokens_per_second: float | None
    """Of one chip, padding counted."""
    ratio: float | None
    """Of its time per token to that of the plain setting; below 1 is faster."""
    is_plain: bool

    def cells(self) -> tuple[str, ...]:
        """The line in words, in the order of `HEAD`."""
        peak = self.compiled.peak_bytes
        return (
            f"{self.setting}{' (plain)' if self.is_plain else ''}",
            "-" if peak is None else f"{peak / GIB:.2f}",
            "yes" if self.compiled.fits else "no",
            "-" if self.step is None else f"{self.step.seconds * 1e3:.1f}",
            "-" if self.tokens_per_second is None else f"{self.tokens_per_second:.0f}",
            "-" if self.ratio is None else f"{self.ratio:.3f}",
            "-" if self.step is None else str(sum(self.step.unknown.values())),
        )


HEAD = ("setting", "peak GiB", "fits", "modelled ms", "tokens/s/chip", "of plain", "no time")
"""The last: instructions that the model counts as none."""


def plain(setting: Setting) -> Setting | None:
    """The setting that others with as many rows per chip are compared with.

    Plain FSDP: weights and rows in as many slices as there are chips, everything computed again,
    no options for the compiler. None if a chip would not have whole rows.
    """
    if not setting.rows_per_chip.is_integer():
        return None
    return Setting((("fsdp", setting.chips),), int(setting.rows_per_chip), "full")


def sweep(
    settings: Iterable[Setting],
    compile_step: Callable[[Setting], Compiled],
    *,
    length: int,
    chip: Chip,
    ring: float | None = None,
) -> list[Row]:
    """Compiles every setting once, and the plain ones of those that fit, and ranks them.

    Those that fit come first, the fastest per token first; then those without a time; then those
    that do not fit.

    Args:
        settings: to try.
        compile_step: what the compiler makes of one; it says itself what does not fit or compile.
        length: positions of a row.
        chip: what runs it.
        ring: see `modelled`.
    """
    compiled = {setting: compile_step(setting) for setting in dict.fromkeys(settings)}
    for setting, made in list(compiled.items()):
        base = plain(setting)
        if made.fits and base is not None and base not in compiled:
            compiled[base] = compile_step(base)
    steps = {setting: _step(made, chip, ring) for setting, made in compiled.items()}
    per_token = {
        setting: None if step is None else step.seconds / (setting.rows_per_chip * length)
        for setting, step in steps.items()
    }
    rows = []
    for setting in compiled:
        base = plain(setting)
        mine, theirs = per_token[setting], per_token.get(base) if base else None
        rows.append(
            Row(
                setting,
                compiled[setting],
                steps[setting],
                None if mine is None else 1 / mine,
                None if mine is None or theirs is None else mine / theirs,
                setting == base,
            )
        )
    return sorted(rows, key=_rank)


def _step(compiled: Compiled, chip: Chip, ring: float | None) -> Modelled | None:
    if not compiled.fits or compiled.text is None:
        return None
    step = modelled(compiled.text, chip, ring)
    return step if step.busy_seconds else None


def _rank(row: Row) -> tuple[bool, float]:
    speed = row.tokens_per_second
    return not row.compiled.fits, math.inf if speed is None else 1 / speed
