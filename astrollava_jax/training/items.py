"""A state as the named items of a checkpoint, and back; its arrays by their names there."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from astrollava_jax.training.state import TrainState

OPTIONAL = ("history",)
"""What a run can do without: it begins anew where a checkpoint has none, or of another shape."""


def as_items(state: TrainState) -> dict[str, Any]:
    """The named items of a state: its fields, but for those that it has not."""
    return {
        name: part._asdict() if hasattr(part, "_asdict") else part
        for name, part in state._asdict().items()
        if part is not None
    }


def as_state(like: TrainState, items: Mapping[str, Any]) -> TrainState:
    """The state of which `items` are the parts; `like` gives their kinds."""
    parts: dict[str, Any] = {
        name: type(part)(**items[name]) if hasattr(part, "_asdict") else items.get(name)
        for name, part in like._asdict().items()
    }
    return type(like)(**parts)


def by_name(items: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by `<item>/<name>`, the name as Orbax stores it."""
    return {
        f"{item}/" + ".".join(str(key.key) for key in path): leaf
        for item, tree in items.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def zeros(like: Any) -> Any:
    """An item of which a checkpoint knows nothing: all zeros, placed as it says."""
    make = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like),
        out_shardings=jax.tree.map(lambda x: x.sharding, like),
    )
    return make()
