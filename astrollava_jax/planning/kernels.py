"""How long a Pallas kernel takes: the compiler does not say, so its FLOPs at a share of the peak.

The shares come from counts of the instructions of compiled v5e kernels, at tiles of 1024, and are
used for every chip. No kernel was timed.
"""

import dataclasses
import re
from collections.abc import Mapping

from astrollava_jax.planning.instructions import Instruction
from astrollava_jax.planning.topologies import Chip


@dataclasses.dataclass(frozen=True)
class _Kernel:
    products: int
    """Matrix products of queries by keys by width."""
    share: float
    """Of the peak that its FLOPs reach, those that the causal mask leaves out not counted."""
    most_results: int
    """With more it is another kernel of the same name, scratch included."""


KERNELS = {
    "fwd": _Kernel(2, 0.47, 5),  # scores, and what they gather
    "dkv": _Kernel(4, 0.50, 4),  # scores again, their gradient, and those of keys and of values
    "dq": _Kernel(3, 0.50, 2),  # scores again, their gradient, and that of queries
}
"""The parts of splash attention by their names in a program."""

_SPLASH = re.compile(r"\bsplash_m[hq]a_([a-z]+)")
_FLOATING = ("bf16", "f16", "f32")


def kernel_seconds(
    instruction: Instruction, by_name: Mapping[str, Instruction], chip: Chip
) -> float | None:
    """How long a kernel takes; None if it is none of `KERNELS`.

    Attention is taken to be causal over the whole row: the program does not tell its mask, so a
    window makes a kernel cheaper than this.

    Args:
        instruction: that calls it.
        by_name: what its operands' names mean.
        chip: the chip.
    """
    name = _SPLASH.search(instruction.line.partition("backend_config=")[0])
    kernel = KERNELS.get(name[1]) if name else None
    arrays = [
        shape
        for operand in instruction.operands
        if operand in by_name
        for shape in by_name[operand].shapes
    ]
    wide = [dims for dtype, dims in arrays if dtype in _FLOATING and len(dims) > 2]
    if kernel is None or len(wide) < 2 or len(instruction.shapes) > kernel.most_results:
        return None
    (*rows, length, width), (*_, keys, _) = wide[:2]
    if length != keys:
        return None
    pairs = length * (length + 1) / 2
    for size in rows:
        pairs *= size
    return 2 * kernel.products * pairs * width / (kernel.share * chip.bf16_flops)
