"""Rotary positions in the keys of transformers: `rope_theta` and `rope_scaling`, or both in one."""

from collections.abc import Mapping
from typing import Any

from astrollava_jax.models.rotary import LinearScaling, Llama3Scaling

Tree = Mapping[str, Any]

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}
SCALINGS: dict[str, tuple[type, Mapping[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (Llama3Scaling, _LLAMA3),
}
"""Their `rope_type` -> our class, and our field -> their key."""

_DEFAULT = ("default", None)
_THETA = 10000.0


def read_rope(tree: Tree) -> dict[str, Any]:
    """Our fields of a config that has no `rope_faults`."""
    rope, kind = _rope(tree)
    theta = next(
        value for value in (rope.get("rope_theta"), tree.get("rope_theta"), _THETA)
        if value is not None
    )  # fmt: skip
    found: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": None}
    if kind in SCALINGS:
        make, keys = SCALINGS[kind]
        found["rope_scaling"] = make(**{ours: rope[theirs] for ours, theirs in keys.items()})
    return found


def write_rope(config: Any) -> dict[str, Any]:
    """The keys as transformers 4 writes them; 5 reads these too."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    values = {theirs: getattr(scaling, ours) for ours, theirs in SCALINGS[scaling.type][1].items()}
    return {"rope_theta": config.rope_theta, "rope_scaling": {"rope_type": scaling.type, **values}}


def rope_faults(tree: Tree) -> list[str]:
    """What a config says of its positions that our formulas do not do."""
    rope, kind = _rope(tree)
    faults = []
    if kind not in (*SCALINGS, *_DEFAULT) or (kind is None and tree.get("rope_scaling")):
        faults.append(f"rope_scaling: expected the type {' or '.join(SCALINGS)}, found {kind!r}")
    elif kind in SCALINGS:
        absent = [theirs for theirs in SCALINGS[kind][1].values() if theirs not in rope]
        faults += [f"rope_scaling: a {kind} has {key}, found none" for key in absent]
    part = rope.get("partial_rotary_factor", tree.get("partial_rotary_factor"))
    if part not in (None, 1.0):
        faults.append(f"partial_rotary_factor: expected 1.0, found {part}")
    return faults


def most_positions(tree: Tree) -> int | None:
    """How many positions a decoder tells apart, by its config; None where that does not say."""
    said = tree.get("max_position_embeddings")
    rope, kind = _rope(tree)
    # Written before positions were drawn together: it says how many there were.
    return said and int(said * (rope["factor"] if kind == "linear" else 1))


def _rope(tree: Tree) -> tuple[Tree, str | None]:
    """What is said of the frequencies, and of which type it is."""
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    return rope, rope.get("rope_type", rope.get("type"))
