"""A compiled step, and what the compiler says of its memory; or how much too large it is."""

import dataclasses
import math
import re
from typing import Any

import jax

from astrollava_jax.planning.hlo import Collective, collectives
from astrollava_jax.planning.topologies import GIB

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"
_TOO_LARGE = (
    re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", re.IGNORECASE),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE),
)
"""The wordings of a program that needs more memory than a chip has."""


BREAKDOWN = (NotImplementedError, jax.errors.JaxRuntimeError)
"""What the compiler and those before it raise where they have no way to compile a program."""


class DoesNotFit(Exception):
    """The compiler has refused a program for its memory."""

    def __init__(self, needed: int, available: int):
        super().__init__(f"needs {needed / GIB:.2f} GiB a chip, which has {available / GIB:.2f}")
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler has laid out on one chip, in bytes."""

    arguments: int
    """Weights, moments and batch, with what their layouts leave empty."""
    outputs: int
    donated: int
    """Of the outputs, what takes the place of arguments."""
    temporaries: int
    """All that is ever made besides, if nothing shared its place."""
    peak: int
    """The most that is held at one time."""

    @property
    def activations(self) -> int:
        """What is held besides the arguments when most is: activations, gradients, workspace."""
        return max(0, self.peak - self.arguments)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step."""

    memory: Memory
    text: str
    """As scheduled; no stable interface of the compiler."""

    @property
    def collectives(self) -> list[Collective]:
        """What its chips exchange, the most bytes first."""
        return collectives(self.text)


def compile_program(lowered: Any, platform: str) -> Program:
    """Compiles a function that JAX has lowered, for the devices of its arguments.

    Args:
        lowered: the function.
        platform: of these devices, as JAX calls it.

    Raises:
        DoesNotFit: if it needs more memory than they have.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = too_large(str(error))
        if refused is None:
            raise
        raise refused from None
    return Program(memory_of(compiled, platform), compiled.as_text())


def memory_of(compiled: Any, platform: str) -> Memory:
    """What the compiler says of the memory of a program, for the devices of a platform."""
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    outputs, donated = found.output_size_in_bytes, found.alias_size_in_bytes
    # The peak of XLA's CPU leaves the temporaries out: there all of it counts, as if at one time.
    peak = found.peak_memory_in_bytes
    if platform == "cpu":
        peak = arguments + outputs - donated + temporaries
    return Memory(arguments, outputs, donated, temporaries, peak)


def too_large(message: str) -> DoesNotFit | None:
    """What a compiler's error says of memory; None if it tells of something else."""
    for wording in _TOO_LARGE:
        if match := wording.search(message):
            size, unit, limit, of = match.groups()
            needed, available = _bytes(size, unit), _bytes(limit, of)
            return DoesNotFit(needed, available)
    return None


def first_line(error: Exception) -> str:
    """What an error says before all that only its makers read."""
    return (str(error).splitlines() or [repr(error)])[0]


def bytes_per_chip(arrays: Any) -> int:
    """What a tree of shapes with their layout takes on the chip that holds most of it."""
    leaves = jax.tree.leaves(arrays)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit.upper()])
