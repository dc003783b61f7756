"""What a compiled step says of itself: memory by class, collectives, or that it does not fit."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from astrollava_jax.planning.hlo import Collective, collectives

_REFUSED = re.compile(
    r"(?:total memory required[^(]*\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\))"
    r"|(?:Used ([\d.]+)G of ([\d.]+)G hbm)"
)
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip."""

    classes: Mapping[str, int]
    """Of what the step is given: `trained`, `moments`, `frozen`, `batch`."""
    temporaries: int
    """Activations, gradients, gathered weights: what lives while the step runs."""
    peak: int
    """The most that is there at one time; what the step is given counts."""
    reused: int
    """Of what the step is given, so much is written over by its results."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A step, compiled for chips that are not there."""

    memory: Memory
    collectives: tuple[Collective, ...]
    text: str = dataclasses.field(repr=False)


class DoesNotFit(Exception):
    """The compiler found no way to run the step in a chip's memory.

    Attributes:
        needed: bytes that it wanted, None where it does not say.
    """

    def __init__(self, needed: int | None):
        said = "more than there is" if needed is None else f"{needed / GIB:.2f} GiB"
        super().__init__(f"the step wants {said}")
        self.needed = needed


def compile_step(lowered: Any, arguments: Mapping[str, Any], options: Mapping[str, str]) -> Program:
    """A lowered step as a program.

    Args:
        lowered: what `jax.jit(...).lower` gave.
        arguments: what the step is given, by class: trees of shapes with shardings.
        options: of the compiler.

    Raises:
        DoesNotFit: if a chip has not enough memory.
    """
    try:
        compiled = lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_needed(str(error))) from None
    analysis = compiled.memory_analysis()
    text = compiled.as_text()
    memory = Memory(
        classes={name: bytes_per_chip(tree) for name, tree in arguments.items()},
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
        reused=analysis.alias_size_in_bytes,
    )
    return Program(memory, tuple(collectives(text)), text)


def bytes_per_chip(tree: Any) -> int:
    """Of the largest shard of every array of a tree, as its sharding cuts it."""
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array in jax.tree.leaves(tree)
    )


def _needed(message: str) -> int | None:
    found = _REFUSED.search(message)
    if found is None:
        return None
    return int(float(found[1] or found[3]) * GIB)
