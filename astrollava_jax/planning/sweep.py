"""Ranks settings of a run by the modelled time of their compiled steps.

Only the ranking is meant: see `roofline.reliance`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

from astrollava_jax.compiler import Options
from astrollava_jax.meshing import Frozen
from astrollava_jax.planning.schedule import Modelled
from astrollava_jax.planning.topologies import GIB
from astrollava_jax.sharding import RULES


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run the same step."""

    mesh: tuple[tuple[str, int], ...]
    """Axis and how many ways; axes of one way are left out."""
    rows: int
    """That the chips which share a tensor compute in a step; those of one chip, where none do."""
    remat: str
    told: tuple[tuple[str, bool | int | str], ...] = ()
    """All that the compiler is told."""
    frozen: Frozen = "sharded"
    """Whether every chip of fsdp has all frozen weights; without fsdp there is no difference."""
    attention: str = "auto"
    told_name: str | None = dataclasses.field(default=None, compare=False)
    """What the table calls the options, where they are many."""

    def __post_init__(self):
        split = tuple((axis, size) for axis, size in self.mesh if size > 1)
        object.__setattr__(self, "mesh", split)
        object.__setattr__(self, "told", tuple(sorted(self.told)))
        if "fsdp" not in dict(split):
            object.__setattr__(self, "frozen", "sharded")

    @property
    def chips(self) -> int:
        """How many it runs on."""
        return math.prod(size for _, size in self.mesh)

    @property
    def rows_per_chip(self) -> float:
        """Less than `rows` where several chips share a tensor."""
        groups = math.prod(size for axis, size in self.mesh if axis in RULES["batch"])
        return self.rows * groups / self.chips

    @property
    def options(self) -> Options:
        """All that the compiler is told."""
        return dict(self.told)

    def __str__(self):
        words = [" x ".join(f"{axis} {size}" for axis, size in self.mesh) or "one chip"]
        if self.frozen == "replicated":
            words.append("frozen weights replicated")
        words.append(f"remat {self.remat}")
        if self.attention != "auto":
            words.append(f"attention {self.attention}")
        listed = " ".join(f"{name}={value}" for name, value in self.told)
        words.append(f"options {(self.told_name or listed) if self.told else 'none'}")
        return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a setting."""

    fits: bool
    peak_bytes: int | None = None
    """That one chip needs; None if the compiler did not get so far."""
    samples: int | None = None
    """Of a step, over all chips."""
    step: Modelled | None = None
    """None if it does not fit, or the model leaves out too much of it."""
    mfu: float | None = None
    """Modelled as well."""
    why: str = ""
    """It was not compiled, or has no time: the reason."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: Setting
    compiled: Compiled
    tokens_per_second: float | None
    """Of one chip, padding counted."""
    ratio: float | None
    """Of its time per token to that of the plain setting; below 1 is faster."""
    is_plain: bool

    @property
    def verdict(self) -> str:
        """Whether it fits; or else that, and what, the compiler did not get so far."""
        if self.compiled.fits:
            return "fits"
        return "does not fit" if self.compiled.peak_bytes is not None else "not compiled"

    def cells(self) -> tuple[str, ...]:
        """The line in words, in the order of `HEAD`."""
        made, step = self.compiled, self.compiled.step
        return (
            f"{self.setting}{' (plain)' if self.is_plain else ''}",
            f"{self.setting.rows_per_chip:g}",
            _told(made.samples, "d"),
            self.verdict,
            _told(made.peak_bytes and made.peak_bytes / GIB, ".2f"),
            _told(step and step.seconds * 1e3, ".1f"),
            _told(step and (step.seconds - step.busy_seconds) * 1e3, ".1f"),
            _told(self.tokens_per_second, ".0f"),
            _told(made.mfu, ".1%"),
            _told(self.ratio, ".3f"),
            _told(step and sum(step.unknown.values()), "d"),
        )


HEAD = (
    "setting", "rows per chip", "samples a step", "verdict", "peak GiB", "modelled ms",
    "of it waiting", "tokens/s/chip", "MFU", "time per token of plain", "without a time",
)  # fmt: skip
"""All figures from `modelled ms` on are modelled. The last: instructions that count as none."""


def plain(setting: Setting, attention: str = "auto") -> Setting | None:
    """The setting that others with as many rows per chip are compared with.

    Plain FSDP: weights and rows in as many slices as there are chips, everything computed again,
    no options for the compiler. None if a chip would not have whole rows.

    Args:
        setting: to compare.
        attention: what computes it in the run.
    """
    if not setting.rows_per_chip.is_integer():
        return None
    rows = int(setting.rows_per_chip)
    return Setting((("fsdp", setting.chips),), rows, "full", attention=attention)


def with_plain(settings: Iterable[Setting], attention: str = "auto") -> list[Setting]:
    """Every setting once, and before those that are compared with it the plain one."""
    found: dict[Setting, None] = {}
    for setting in settings:
        base = plain(setting, attention)
        found |= dict.fromkeys((setting,) if base is None else (base, setting))
    return list(found)


def sweep(
    settings: Iterable[Setting],
    compile_step: Callable[[Setting], Compiled],
    *,
    length: int,
    attention: str = "auto",
) -> Iterator[Row]:
    """Compiles every setting once, with the plain ones before them, and tells each as it is done.

    Args:
        settings: to try.
        compile_step: what the compiler makes of one; it says itself what does not fit or compile.
        length: positions of a row.
        attention: what computes it in the run, and so in the plain settings.
    """
    speeds: dict[Setting, float | None] = {}
    for setting in with_plain(settings, attention):
        made, base = compile_step(setting), plain(setting, attention)
        tokens = setting.rows_per_chip * length
        mine = None if made.step is None else tokens / made.step.seconds
        speeds[setting] = mine
        theirs = None if base is None else speeds[base]
        ratio = None if mine is None or theirs is None else theirs / mine
        yield Row(setting, made, mine, ratio, setting == base)


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The fastest per token first; then what has no time; then what does not fit."""
    return sorted(rows, key=_rank)


def _rank(row: Row) -> tuple[bool, float]:
    speed = row.tokens_per_second
    return not row.compiled.fits, math.inf if speed is None else 1 / speed


def _told(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)
