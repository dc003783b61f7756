"""Which settings of a run `plan --sweep` tries: axes, and their values on a command line."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from astrollava_jax import compiler
from astrollava_jax.meshing import Frozen
from astrollava_jax.models.attention import Choice
from astrollava_jax.models.remat import Remat
from astrollava_jax.planning.sweep import Setting
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.layout import needs
from astrollava_jax.run.plan import Machine
from astrollava_jax.run.planned_rows import planned_rows
from astrollava_jax.run.stage import Model, describe, rows_unit
from astrollava_jax.sharding import MeshConfig, rows_multiple
from astrollava_jax.weights.outline import Outline

FILE = "file"
"""The mesh that the run's file says."""

MESHES: dict[str, tuple[int, int, Frozen]] = {
    "fsdp": (1, 1, "sharded"),  # nothing is held twice
    "copies": (1, 1, "replicated"),  # nothing but what is frozen
    "data2": (2, 1, "sharded"),  # all twice: half as many chips exchange a slice
    "tensor2": (1, 2, "sharded"),  # two chips compute each row together
    "tensor4": (1, 4, "sharded"),
}
"""Name -> ways of data, ways of tensor, and where the frozen weights go; fsdp has what is left."""

KNOWN: dict[str, tuple[str, ...]] = {
    "rows": (),  # any number from 1 on, on each chip at a time
    "mesh": (FILE, *MESHES),
    "remat": get_args(Remat),
    "options": ("table", "none"),  # what `train` tells the compiler of chip and run, or nothing
    "attention": get_args(Choice),
}
"""What a sweep may vary, and the values that it may have."""


def settings(
    run: RunConfig,
    where: Machine,
    outline: Outline,
    words: Sequence[str],
    rows_per_chip: int | None,
) -> list[Setting]:
    """Every combination of what is asked for, and of what is likely where nothing is.

    Args:
        run: the run.
        where: the machine.
        outline: what it trains.
        words: the values of some axes, `remat=full,dots`.
        rows_per_chip: that a chip computes in a step; None = as `words` say, or the batch has.

    Raises:
        ValueError: if an axis or a value is not known, or a mesh does not divide the chips.
    """
    asked, model = values(words, rows_per_chip), describe(run, outline.config)
    if "rows" not in asked:
        found = rows_per_chip or _rows_per_chip(run, where, model, outline)
        asked["rows"] = [str(found)]
    return _combined(run, where, model, _likely(run, len(where.devices)) | asked)


def with_setting(run: RunConfig, setting: Setting) -> RunConfig:
    """The run in a setting; what the compiler is told then is no part of it."""
    sizes: Any = {"data": 1, "fsdp": 1, "tensor": 1} | dict(setting.mesh)
    how: Any = {"remat": setting.remat, "attention": setting.attention}
    return dataclasses.replace(
        run,
        mesh=MeshConfig(**sizes, frozen=setting.frozen),
        batch=dataclasses.replace(run.batch, rows_per_device=setting.rows),
        **how,
    )


def values(words: Sequence[str], rows_per_chip: int | None = None) -> dict[str, list[str]]:
    """The values of the axes that a command line names.

    Args:
        words: `remat=full,dots`, one for each axis.
        rows_per_chip: what else the command line says of rows.

    Raises:
        ValueError: for what is not known; all of it at once.
    """
    found, faults = {}, []
    for word in words:
        axis, _, listed = word.partition("=")
        if axis in found and axis in KNOWN:
            faults.append(f"{word}: {axis} is named twice; name all its values in one {axis}=A,B")
        found[axis] = listed.split(",")
        if axis not in KNOWN:
            faults.append(f"{word}: expected AXIS=VALUE,VALUE with one of {', '.join(KNOWN)}")
        elif axis == "rows":
            wrong = [one for one in found[axis] if not one.isdecimal() or int(one) < 1]
            faults += [f"rows={one}: expected a number from 1 on" for one in wrong]
        else:
            wrong = [one for one in found[axis] if one not in KNOWN[axis]]
            faults += [f"{axis}={one}: expected one of {', '.join(KNOWN[axis])}" for one in wrong]
    if "rows" in found and rows_per_chip is not None:
        faults.append(
            f"rows: --rows-per-chip {rows_per_chip} names them too; leave out one of the two"
        )
    if faults:
        raise ValueError("--sweep\n  " + "\n  ".join(faults))
    return found


def _likely(run: RunConfig, chips: int) -> dict[str, list[str]]:
    """What is worth its minutes: some ten settings, plain FSDP among them."""
    return {
        "mesh": [FILE, "fsdp", "tensor2"] if chips % 2 == 0 else [FILE],
        "remat": [*({run.remat} - {"auto"}), "full", "mlp", "dots_attention"],
        "options": ["table"],
        "attention": [run.attention],
    }


def _rows_per_chip(run: RunConfig, where: Machine, model: Model, outline: Outline) -> int:
    """That the run would compute at a time on this machine."""
    mesh, _ = run.mesh.layout(where.devices, needs(run, model, where.usable))
    unit, facts = rows_unit(run, mesh), outline.config.image_facts
    count = planned_rows(run, facts, unit, outline.tokenizer_folder).count
    at_once = run.batch.rows_per_device or count // rows_multiple(mesh)
    return max(1, at_once // mesh.shape["tensor"])


def _combined(
    run: RunConfig, where: Machine, model: Model, asked: Mapping[str, Sequence[str]]
) -> list[Setting]:
    """Every combination of what is asked for, each setting once.

    Raises:
        ValueError: if a mesh does not divide the chips.
    """
    chips, need = len(where.devices), needs(run, model, where.usable)
    told = {"none": {}, "table": compiler.options(where.devices[0], run.compiler_options)}
    found = []
    for rows, name, remat, options, attention in itertools.product(
        *(asked[axis] for axis in KNOWN)
    ):
        data, tensor, frozen = MESHES.get(name, (1, 1, "sharded"))
        if chips % (data * tensor):
            raise ValueError(
                f"--sweep mesh={name}: {data * tensor} does not divide {chips} chip(s)"
            )
        mesh = MeshConfig(data=data, fsdp=chips // (data * tensor), tensor=tensor, frozen=frozen)
        _, choice = (run.mesh if name == FILE else mesh).layout(where.devices, need)
        found.append(
            Setting(
                (("data", choice.data), ("fsdp", choice.fsdp), ("tensor", choice.tensor)),
                int(rows) * choice.tensor,
                remat,
                tuple(told[options].items()),
                choice.frozen if model.frozen else "sharded",
                attention,
                told_name="table",
            )
        )
    return list(dict.fromkeys(found))
