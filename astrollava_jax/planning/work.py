"""The FLOPs that a step executes, counted where it was traced: remade activations count too.

The compiler's own count takes a loop's body once, whatever its length.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

_CUDNN = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}
"""Attention by cuDNN -> its products of all queries with all keys: the backward pass makes the
scores again, and from them what belongs to the weights, to q, k and v."""
_HEADS_FIRST = 1
"""The layout `[B, N, T, H]` of its queries and keys; 0 is `[B, T, N, H]`."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """What the matrix products of a step cost, over all chips."""

    flops: int
    inexact: tuple[str, ...]
    """Where the count may be wrong, and how."""


def executed(jaxpr: Any) -> Executed:
    """The FLOPs of a traced function: matrix products and convolutions, loops by their length."""
    inexact: set[str] = set()
    flops = _count(getattr(jaxpr, "jaxpr", jaxpr), inexact)
    return Executed(flops, tuple(sorted(inexact)))


def _count(jaxpr: Any, inexact: set[str]) -> int:
    return sum(_of(equation, inexact) for equation in jaxpr.eqns)


def _of(equation: Any, inexact: set[str]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * _size(equation.outvars[0]) * math.prod(left[dim] for dim in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        outputs = kernel[numbers.rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * math.prod(kernel) // outputs
    if name in _CUDNN:
        queries, keys = (variable.aval.shape for variable in equation.invars[:2])
        length = keys[2 if params["layout"] == _HEADS_FIRST else 1]
        inexact.add("attention by cuDNN: all pairs, those passed over too")
        return _CUDNN[name] * 2 * math.prod(queries) * length
    if name == "pallas_call" and params.get("cost_estimate") is not None:
        return int(params["cost_estimate"].flops)
    inner = [_count(jaxpr, inexact) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, default=0)
    if name == "while" and any(inner):
        inexact.add("a loop of unknown length: one round is counted")
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # traced as one chip sees it
        times = math.prod(params["mesh"].shape[axis] for axis in _manual(params))
    elif name == "pallas_call":
        times = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
        inexact.add(f"{params.get('name') or 'a kernel'}: all tiles, those passed over too")
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
