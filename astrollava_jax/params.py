"""A parameter's address, patterns over addresses, and the fate of every parameter.

An address is the path of a parameter in the model, `llm/layers/attn/q_proj/kernel`. It is the
one name that tables, logs and checkpoints use. Layers are stacked on a leading axis, so an address
holds no layer number.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

Params = dict[str, Any]
"""Arrays by address: real ones, traced ones, or their shapes."""

Value = TypeVar("Value")


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A model as its static structure and its arrays by address."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def merge(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The model whose structure is `graphdef` and whose arrays are `params`.

    Sound inside `jax.jit`, `grad` and `scan`: new variables are made at each call.
    """
    state = nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in params.items()])
    return nnx.merge(graphdef, state)


def matches(pattern: str, address: str) -> bool:
    """Whether the regular expression matches the address whole.

    Raises:
        ValueError: if it is none.
    """
    try:
        return re.fullmatch(pattern, address) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r}: not a regular expression: {error}") from None


def assign(
    rows: Sequence[tuple[str, Value]], addresses: Iterable[str], what: str = "a fate"
) -> dict[str, Value]:
    """Gives each address the value of exactly one row of a (pattern, value) table.

    Raises:
        ValueError: if an address is matched by no row or by several, or if a row matches nothing;
            all faults in one message.
    """
    addresses = sorted(addresses)
    faults = []
    found: dict[str, list[int]] = {address: [] for address in addresses}
    for index, (pattern, _) in enumerate(rows):
        hits = [address for address in addresses if matches(pattern, address)]
        if not hits:
            faults.append(_idle(pattern, addresses))
        for address in hits:
            found[address].append(index)
    for address, hits in found.items():
        if not hits:
            faults.append(f"{address}: matched by no row")
        elif len(hits) > 1:
            faults.append(f"{address}: matched by {', '.join(repr(rows[i][0]) for i in hits)}")
    if any(len(hits) > 1 and "/lora_" in address for address, hits in found.items()):
        faults.append(
            "adapters are parameters of their own, `<module>/lora_a` and `lora_b`: leave them out "
            "of the base's pattern, as in 'llm/(?!.*/lora_).*'"
        )
    if faults:
        raise ValueError(
            f"every parameter needs exactly one row that gives it {what}:\n  " + "\n  ".join(faults)
        )
    return {address: rows[hits[0]][1] for address, hits in found.items()}


def select(patterns: Iterable[str], addresses: Iterable[str], what: str = "parameter") -> list[str]:
    """The addresses that some pattern matches, sorted.

    Raises:
        ValueError: if a pattern matches nothing.
    """
    addresses = sorted(addresses)
    patterns = list(patterns)
    idle = [p for p in patterns if not any(matches(p, a) for a in addresses)]
    if idle:
        raise ValueError("\n".join(_idle(pattern, addresses, what) for pattern in idle))
    return [a for a in addresses if any(matches(p, a) for p in patterns)]


def _idle(pattern: str, addresses: Sequence[str], what: str = "parameter") -> str:
    hint = ""
    if re.search(r"/(\d+|\\d)", pattern):
        hint = "; layers are stacked, so an address has no layer number"
    roots = sorted({address.split("/")[0] for address in addresses})
    return f"{pattern!r}: matches no {what} (they begin with {', '.join(roots)}){hint}"


def _path(address: str) -> tuple[str, ...]:
    return tuple(address.split("/"))
