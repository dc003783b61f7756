"""The FLOPs that a step executes, counted where it was traced: remade activations count too.

The compiler's own count takes a loop's body once, whatever its length.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Executed:
    """What the matrix products of a step cost, over all chips."""

    flops: int
    unknown: tuple[str, ...]
    """What may hold more of them: kernels without a count, loops of unknown length (their bodies
    are counted once)."""


def executed(jaxpr: Any) -> Executed:
    """The FLOPs of a traced function: matrix products and convolutions, loops by their length."""
    unknown: Counter[str] = Counter()
    flops = _count(getattr(jaxpr, "jaxpr", jaxpr), unknown)
    return Executed(flops, tuple(sorted(unknown)))


def _count(jaxpr: Any, unknown: Counter[str]) -> int:
    return sum(_of(equation, unknown) for equation in jaxpr.eqns)


def _of(equation: Any, unknown: Counter[str]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * _size(equation.outvars[0]) * math.prod(left[dim] for dim in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        outputs = kernel[numbers.rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * math.prod(kernel) // outputs
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        if estimate is None:
            unknown[f"kernel {params.get('name') or 'without name'}"] += 1
        return 0 if estimate is None else int(estimate.flops)
    inner = [_count(jaxpr, unknown) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, default=0)
    if name == "while" and any(inner):
        unknown["loop of unknown length"] += 1
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":  # traced as one chip sees it
        times = math.prod(params["mesh"].shape[axis] for axis in _manual(params))
    return times * sum(inner)


def _manual(params: dict[str, Any]) -> Any:
    return params.get("newly_manual_axes") or params.get("manual_axes") or params["mesh"].axis_names


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The functions that an operation holds."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
