"""Which layout a model's directory has, told by its files, never by its name."""

from collections.abc import Callable, Mapping
from typing import Any

from astrollava_jax import files
from astrollava_jax.weights.family import known
from astrollava_jax.weights.llava import (
    DECODER,
    HF,
    ORBAX,
    ORIGINAL,
    PEFT,
    PROJECTOR,
    TOWER,
    Layout,
)
from astrollava_jax.weights.orbax import FACTS
from astrollava_jax.weights.peft import CONFIG as ADAPTER
from astrollava_jax.weights.tensors import has_tensors

Tree = Mapping[str, Any]


def _is_original(tree: Tree) -> bool:
    kind = str(tree.get("model_type"))
    return kind.startswith("llava") and ("mm_vision_tower" in tree or "mm_hidden_size" in tree)


MM_PROJECTOR = "mm_projector.bin"
_MARKS = ((ORBAX, FACTS), (PEFT, ADAPTER), (PROJECTOR, MM_PROJECTOR))
"""Files by which a layout is known; those of the last two lie beside whole models as well."""

_TOWERS = [*known("vision"), *(name.removesuffix("_vision_model") for name in known("vision"))]

_TESTS: tuple[tuple[Layout, str, Callable[[Tree], bool]], ...] = (
    (ORIGINAL, "model_type llava or llava_*, with mm_* keys", _is_original),
    (
        HF,
        "model_type llava or llava_next, with text_config",
        lambda tree: tree.get("model_type") in ("llava", "llava_next"),
    ),
    (
        DECODER,
        f"model_type {', '.join(known('llm'))}",
        lambda tree: tree.get("model_type") in known("llm"),
    ),
    (TOWER, f"model_type {', '.join(_TOWERS)}", lambda tree: tree.get("model_type") in _TOWERS),
)
"""What a layout's config.json looks like; the first that fits holds."""


def recognise(folder: files.Where) -> Layout:
    """The layout of a model's directory.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if its layout is unknown; says what was looked for and what was found.
    """
    if not files.is_folder(folder):
        raise FileNotFoundError(f"{folder}: expected the directory of a model, found none")
    for layout, name in _MARKS:
        if files.exists(files.join(folder, name)) and (layout is ORBAX or not has_tensors(folder)):
            return layout
    found = ", ".join(files.names(folder)[:20]) or "nothing"
    if files.exists(files.join(folder, "config.json")):
        tree = files.read_json_object(files.join(folder, "config.json"))
        for layout, _, fits in _TESTS:
            if fits(tree):
                return layout
        found = f"model_type {tree.get('model_type')!r} in config.json"
    looked = "\n  ".join(f"{layout.name}: config.json with {says}" for layout, says, _ in _TESTS)
    marks = "\n  ".join(f"{layout.name}: {name}" for layout, name in _MARKS)
    raise ValueError(f"{folder}: unknown layout. Looked for\n  {looked}\n  {marks}\nfound {found}")
