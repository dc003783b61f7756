"""The setting nearest to one that does not fit, among those that do."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from astrollava_jax.models.quantize import FORMS
from astrollava_jax.planning.program import BREAKDOWN, first_line
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Planned
from astrollava_jax.sharding import MeshConfig

LESS_KEPT = (
    "none", "dots_attention", "dots", "mlp", "projections", "attention", "full", "offload",
)  # fmt: skip
"""Remat, from what keeps most of a layer for the backward pass to what keeps least."""

SMALLER = ("float32", "bfloat16", *FORMS)
"""Working copies of what is frozen, the largest first."""

WAYS = (2, 4, 8)
"""Chips that share a tensor, in settings that are tried."""

Change = tuple[str, str, Callable[[RunConfig], RunConfig]]
"""An option of the command line, its value, and what it makes of a run."""


@dataclasses.dataclass(frozen=True)
class Try:
    """A setting that was compiled, or could not be built."""

    said: str
    """What is changed, as `train` and `plan` take it on their command lines."""
    planned: Planned | None
    why: str = ""
    """Why it could not be built."""


def nearest(
    first: Planned,
    compile_step: Callable[[RunConfig], Planned],
    rows: str = "--batch.rows_per_device",
) -> Iterator[Try]:
    """Tries settings in the order of least harm until one fits, which is then the last.

    First fewer rows at a time, by halving, which changes no number; then less that is kept for the
    backward pass, which costs time; then nothing held twice, which costs exchange; then smaller
    copies of what is frozen, which costs precision; then more chips that share a tensor. A kind of
    change keeps the farthest of the kinds before it. A remat that is left open is decided for each
    setting, and named in it.

    Args:
        first: what does not fit.
        compile_step: compiles a run for the same machine.
        rows: the option that says how many rows a chip computes at a time.
    """
    run, options, kept = first.asked, {}, first.run.remat
    kinds = (
        lambda: _fewer_rows(first, rows),
        lambda: _remat(kept),
        lambda: _sharded(first),
        lambda: _frozen(first),
        lambda: _axes(first),
    )
    for changes in kinds:
        farthest = run, options
        for option, value, change in changes():
            others = {name: given for name, given in options.items() if name != option}
            changed, given = change(run), {**others, option: value}
            told = " ".join(" ".join(pair) for pair in given.items())
            try:
                planned = compile_step(changed)
            except ValueError as error:  # nothing frozen to store, or axes that divide nothing
                yield Try(told, None, str(error))
                continue
            except BREAKDOWN as error:
                yield Try(told, None, first_line(error))
                continue
            kept = planned.run.remat
            if changed.remat == "auto":  # decided for this setting: named, so that it stays so
                told += f" --remat {kept}"
            yield Try(told, planned)
            if planned.fits:
                return
            farthest = changed, given
        run, options = farthest


def _fewer_rows(first: Planned, option: str) -> Sequence[Change]:
    number, found = first.rows_per_chip, []
    while number > 1:
        number //= 2
        found.append((option, str(number), _with(batch={"rows_per_device": number})))
    return found


def _remat(kept: str) -> Sequence[Change]:
    return [("--remat", kind, _with(remat=kind)) for kind in _after(LESS_KEPT, kept)]


def _sharded(first: Planned) -> Sequence[Change]:
    mesh = first.mesh
    copies = first.held["frozen weights"] and first.frozen == "replicated" and mesh["fsdp"] > 1
    if mesh["data"] == 1 and not copies:
        return []
    return [_mesh(len(first.machine.devices), mesh["tensor"])]


def _frozen(first: Planned) -> Sequence[Change]:
    if not first.held["frozen weights"]:
        return []
    forms = _after(SMALLER, first.run.precision.frozen)
    return [("--precision.frozen", form, _with(precision={"frozen": form})) for form in forms]


def _axes(first: Planned) -> Sequence[Change]:
    chips, now = len(first.machine.devices), first.mesh["tensor"]
    return [_mesh(chips, tensor) for tensor in WAYS if tensor > now and chips % tensor == 0]


def _mesh(chips: int, tensor: int) -> Change:
    """Each chip of those that share no tensor holds its own part of all weights."""
    one = MeshConfig(data=1, fsdp=chips // tensor, tensor=tensor, frozen="sharded")
    value = f"'{{data: 1, fsdp: {one.fsdp}, tensor: {tensor}, frozen: sharded}}'"
    return "--mesh", value, _with(mesh=one)


def _after(order: Sequence[str], now: str) -> Sequence[str]:
    return order[order.index(now) + 1 :]


def _with(**changes: Any) -> Callable[[RunConfig], RunConfig]:
    """Replaces keys of a run; those of a part of it are given as a mapping."""

    def change(run: RunConfig) -> RunConfig:
        made = {
            key: dataclasses.replace(getattr(run, key), **value)
            if isinstance(value, dict)
            else value
            for key, value in changes.items()
        }
        return dataclasses.replace(run, **made)

    return change
