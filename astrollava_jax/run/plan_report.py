"""What `plan` prints: tables for a person, or the same facts as JSON."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from astrollava_jax.planning.topologies import GIB
from astrollava_jax.run.nearest import Try
from astrollava_jax.run.plan import Planned

NARROW = GIB
"""Less room than this above the peak is warned of."""


def facts(planned: Planned) -> dict[str, Any]:
    """All of it as plain values: bytes of one chip, FLOPs of all of them."""
    memory, rows, usable = planned.memory, planned.rows, planned.machine.usable
    return {
        "machine": planned.machine.name,
        "chips": len(planned.machine.devices),
        "device_kind": planned.machine.devices[0].device_kind,
        "jax": jax.__version__,
        "mesh": planned.mesh,
        "remat": planned.run.remat,
        "frozen": planned.run.precision.frozen,
        "rows": {
            "length": rows.shape.length,
            "images": rows.shape.images,
            "learned": rows.shape.learned,
            "per_chip_at_once": planned.rows_per_chip,
            "per_step": rows.count,
            "micro_batches": planned.micro_batches,
            "samples_per_step": rows.samples,
            "known_from": rows.said,
        },
        "notes": planned.notes,
        "fits": planned.fits,
        "needed_bytes": planned.needed,
        "usable_bytes": usable,
        "held_bytes": _classes(planned),
        "compiler": None if memory is None else dataclasses.asdict(memory),
        "collectives": _exchanged(planned),
        "flops": {
            "executed": planned.executed.flops,
            "useful": planned.useful,
            "inexact": planned.executed.inexact,
        },
    }


def as_json(planned: Planned, tries: Sequence[Try], modelled: dict[str, Any]) -> str:
    """What was planned, what was modelled of it, and what was tried where it does not fit."""
    tree = facts(planned) | modelled
    if tries:
        found = [_tried(one) for one in tries]
        fitting = tries[-1].said if _fits(tries[-1]) else None
        tree |= {"tried": found, "nearest": fitting}
    return json.dumps(tree, indent=2)


def show(console: Console, planned: Planned) -> None:
    """Prints what was planned."""
    machine, rows, run = planned.machine, planned.rows, planned.run
    for note in planned.notes:
        console.print(f"note: {note}")
    axes = " x ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    kind = machine.devices[0].device_kind
    console.print(f"machine: {machine.name}, {len(machine.devices)} x {kind}; mesh: {axes}")
    console.print(
        f"step: {rows.samples} samples in {rows.count} rows of {rows.shape.length}: "
        f"{planned.micro_batches} time(s) {planned.rows_per_chip} row(s) on each chip; a row has "
        f"{rows.shape.images} images and {rows.shape.learned} learned positions"
    )
    console.print(f"rows: {rows.said}")
    console.print(f"remat {run.remat}, frozen weights in {run.precision.frozen}")
    _verdict(console, planned)
    _memory(console, planned)
    _collectives(console, planned)
    _work(console, planned)


def show_try(console: Console, one: Try) -> None:
    """Prints what became of a setting."""
    if one.planned is None:
        console.print(f"  cannot be: {one.said}: {one.why}")
        return
    verdict = "fits" if one.planned.fits else "does not fit"
    console.print(f"  {verdict}, {_gib(one.planned.needed)}: {one.said}")


def show_nearest(console: Console, tries: Sequence[Try]) -> None:
    """Prints what to do."""
    if tries and _fits(tries[-1]):
        console.print(f"\nthe nearest setting that fits: {tries[-1].said}")
    else:
        console.print("\nnone of them fits: take more chips, larger ones, or let less train")


def _verdict(console: Console, planned: Planned) -> None:
    needed, usable = planned.needed, planned.machine.usable
    if usable is None:
        console.print(f"needs {_gib(needed)} a chip; the device does not tell how much it has")
    elif not planned.fits:
        console.print(f"DOES NOT FIT: needs {_gib(needed)} of {_gib(usable)} a chip")
    else:
        console.print(f"fits: peak {_gib(needed)} of {_gib(usable)} a chip, "
                      f"{_gib(usable - needed)} left")  # fmt: skip
        if usable - needed < NARROW:
            console.print("warning: less than 1 GiB is left, for all that is not in this program")


def _classes(planned: Planned) -> dict[str, int]:
    """Bytes of one chip by what they are for; those of the peak, where it was compiled."""
    found, memory = dict(planned.held), planned.memory
    if memory is None:
        return found
    # Less than none where the program does not take what it never reads.
    found["empty places of layouts"] = max(0, memory.arguments - sum(found.values()))
    found["activations and temporaries"] = memory.activations
    return found


def _memory(console: Console, planned: Planned) -> None:
    table = Table(box=box.SIMPLE, title="bytes of one chip", title_justify="left")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in _classes(planned).items():
        table.add_row(name, f"{size / GIB:.3f}")
    if planned.memory is not None:
        table.add_row("peak", f"{planned.memory.peak / GIB:.3f}", style="bold")
        table.add_row("of it donated: updated in its place", f"{planned.memory.donated / GIB:.3f}")
    console.print(table)


def _exchanged(planned: Planned) -> list[dict[str, Any]]:
    """The collectives of a step by kind and operand."""
    found: dict[tuple[Any, ...], int] = collections.Counter()
    sizes: dict[tuple[Any, ...], int] = {}
    for one in planned.collectives:
        key = one.kind, one.shapes
        found[key] += one.count
        sizes[key] = one.num_bytes
    listed = [
        {
            "kind": kind,
            "arrays": [f"{dtype}{list(dims)}" for dtype, dims in shapes],
            "times": times,
            "bytes": times * sizes[kind, shapes],
        }
        for (kind, shapes), times in found.items()
    ]
    return sorted(listed, key=lambda one: -one["bytes"])


def _collectives(console: Console, planned: Planned) -> None:
    if planned.memory is None:
        return
    found = _exchanged(planned)
    if not found:
        console.print("collectives: none")
        return
    table = Table(box=box.SIMPLE, title="collectives of a step, on one chip", title_justify="left")
    for name in ("kind", "times", "GiB in all", "largest array"):
        table.add_column(name, justify="left" if name in ("kind", "largest array") else "right")
    for kind in dict.fromkeys(one["kind"] for one in found):
        mine = [one for one in found if one["kind"] == kind]
        largest = max(mine, key=lambda one: one["bytes"] / one["times"])
        times, size = sum(one["times"] for one in mine), sum(one["bytes"] for one in mine)
        table.add_row(kind, f"{times:,}", f"{size / GIB:.3f}", " ".join(largest["arrays"]))
    console.print(table)


def _work(console: Console, planned: Planned) -> None:
    done, chips = planned.executed, len(planned.machine.devices)
    console.print(
        f"FLOPs of a step on each chip: {done.flops / chips:.4g} executed, "
        f"{planned.useful / chips:.4g} useful in full rows"
    )
    for where in done.inexact:
        console.print(f"  counted in {where}")


def _tried(one: Try) -> dict[str, Any]:
    if one.planned is None:
        return {"setting": one.said, "fits": False, "why": one.why}
    return {"setting": one.said, "fits": one.planned.fits, "needed_bytes": one.planned.needed}


def _fits(one: Try) -> bool:
    return one.planned is not None and one.planned.fits


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
