"""What a model is by its config files alone, or by its published name: no tensor is looked at."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from astrollava_jax import files
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.weights import foreign_config, llava, published, vocabulary
from astrollava_jax.weights.directory import config_file, processor_file, told
from astrollava_jax.weights.foreign_config import PUBLISHED_TOWERS
from astrollava_jax.weights.llava import DECODER, HF, ORBAX, ORIGINAL, PEFT, TOWER
from astrollava_jax.weights.orbax import SIDECARS, stored_config
from astrollava_jax.weights.peft import base_of
from astrollava_jax.weights.recognise import recognise

ADDED_WORDS = 2
"""`<image>` and a pad: what a decoder that was made for words alone lacks."""

_TOWERS = {name.rsplit("/", 1)[-1]: tree for name, tree in PUBLISHED_TOWERS.items()}


@dataclasses.dataclass(frozen=True)
class Outline:
    """A model before it has numbers."""

    config: LlavaConfig
    notes: tuple[str, ...] = ()
    """What was taken from a table, because it is not here."""
    tokenizer_folder: str | None = None
    """Where the tokenizer's files are; None where there are none."""


def outline(
    model: str, *, vision: str | None = None, llm: str | None = None, base: str | None = None
) -> Outline:
    """The shape of a whole model, in whichever layout.

    Args:
        model: its directory; where there is none, the last word of it is looked for among the
            published names.
        vision: the directory of its tower, for an original directory that only names it.
        llm: the directory of its decoder, for one that holds a projector alone.
        base: the directory of the model that an adapter belongs to, unless its config names it.

    Raises:
        FileNotFoundError: if it is neither here nor in the table; lists the names in it.
        ValueError: if it is no model that is known here.
    """
    if not files.is_folder(model):
        tree, note = _published(model, published.MODELS, "a model")
        return Outline(foreign_config.read_hf(tree, {}), (note,))
    layout, notes = recognise(model), ()
    if layout is PEFT:
        return outline(str(base_of(model, base)), vision=vision)
    if layout is ORBAX:
        return Outline(stored_config(model), (), _tokenizer_folder(files.join(model, SIDECARS)))
    if layout is HF:
        config = told(model, foreign_config.read_hf, config_file(model), processor_file(model))
    elif layout is ORIGINAL:
        tree = config_file(model)
        tower, notes = _tower(vision) if vision else (foreign_config.tower_of_original(tree), ())
        if tower is None:
            raise ValueError(
                f"{model}: the heads of its vision tower are not known: give init.vision with the "
                f"directory of {tree.get('mm_vision_tower')}"
            )
        config = told(model, foreign_config.read_original, tree, tower)
    elif vision and llm:
        return joined(vision, llm)
    else:
        raise ValueError(
            f"{model}: holds {layout.holds}, no LLaVA: give init.vision and init.llm, the "
            "directories of a tower and of a decoder"
        )
    return _with_words(config, model, notes, grows=layout is ORIGINAL)


def joined(vision: str, llm: str) -> Outline:
    """The shape of a tower and a decoder with a fresh projector between them.

    Raises:
        FileNotFoundError, ValueError: as `outline`.
    """
    tower, notes = _tower(vision)
    if files.is_folder(llm):
        _check(llm, DECODER)
        tree, more = config_file(llm), ()
    else:
        tree, note = _published(llm, published.DECODERS, "a decoder")
        more = (note,)
    decoder = told(llm, foreign_config.read_decoder, tree)
    config = LlavaConfig(vision=tower, projector=MlpConfig(depth=2), llm=decoder)
    return _with_words(config, llm, (*notes, *more), grows=True)


def _tower(folder: str) -> tuple[Any, tuple[str, ...]]:
    if not files.is_folder(folder):
        tree, note = _published(folder, _TOWERS, "a tower")
        return foreign_config.read_tower(tree, {}), (note,)
    _check(folder, TOWER)
    trees = config_file(folder), processor_file(folder)
    return told(folder, foreign_config.read_tower, *trees), ()


def _check(folder: str, wanted: llava.Layout) -> None:
    found = recognise(folder)
    if found is not wanted:
        raise ValueError(f"{folder}: expected {wanted.holds}, found {found.holds}")


def _published(path: str, table: Mapping[str, Any], what: str) -> tuple[Any, str]:
    """The config of a published name, and what to tell of it."""
    word = files.name(path)
    name = word if word in table else word.removesuffix("-hf")
    if name in table:
        return table[name], f"{path} is not here: the published shape of {name} is taken"
    raise FileNotFoundError(
        f"{path}: expected the directory of {what}, or a published name, found none; the names "
        f"are: {', '.join(table)}"
    )


def _tokenizer_folder(folder: str) -> str | None:
    found = (files.exists(files.join(folder, f"tokenizer.{end}")) for end in ("json", "model"))
    return folder if any(found) else None


def _with_words(
    config: LlavaConfig, folder: str, notes: tuple[str, ...], *, grows: bool
) -> Outline:
    """The shape with room for `<image>` and a pad, as opening the model makes it."""
    rows, where = config.llm.vocab_size, _tokenizer_folder(folder)
    if where is not None:
        needed = vocabulary.rows_needed(Tokenizer.from_folder(where), rows, folder)
    elif grows:
        needed = vocabulary.rounded(rows + ADDED_WORDS)
    else:
        needed = rows
    return Outline(llava.with_vocabulary(config, needed), notes, where)
