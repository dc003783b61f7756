"""Writes a model in any layout, tensor by tensor; it appears under its name whole or not at all."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import checksums, files
from astrollava_jax.data.image import Mode
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.weights import orbax, safetensors, sidecars
from astrollava_jax.weights.layout import Foreign
from astrollava_jax.weights.llava import (
    DECODER,
    HF,
    ORBAX,
    ORIGINAL,
    TOWER,
    Layout,
    with_vocabulary,
)
from astrollava_jax.weights.safetensors import Info, Outgoing
from astrollava_jax.weights.source import Overlay, Source

LAYOUTS = {layout.name: layout for layout in (HF, ORIGINAL, ORBAX, DECODER, TOWER)}
"""What can be written, by name; the last two are a bare decoder and a bare tower."""

_SIDECARS = {
    HF.name: sidecars.hf_files,
    ORIGINAL.name: sidecars.original_files,
    DECODER.name: sidecars.decoder_files,
    TOWER.name: sidecars.tower_files,
}


def save(
    target: files.Where,
    layout: str,
    source: Source,
    trained: Mapping[str, Any] | None = None,
    *,
    dtype: Any = None,
    template: str | None = None,
    image_mode: Mode | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes a model into a new directory.

    What was not trained comes from the source's files, bit for bit; what was has the dtype that it
    has there. The files beside the weights are the source's, byte for byte, where they are still
    true in this layout; else they are written anew.

    Args:
        target: the directory; it must not be there, or be empty.
        layout: a name of `LAYOUTS`.
        source: the model.
        trained: arrays by address that stand in for the source's.
        dtype: what all parameters become, unless what they are stored as.
        template: how the model was trained to be spoken to, unless as the source says.
        image_mode: how it was trained to see pictures, unless as the source says.
        tokenizer: its tokenizer, unless the source's.

    Raises:
        FileExistsError: if something is at the target.
        ValueError: if the layout cannot hold this model, or a parameter has no numbers.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    model = Overlay(
        source, trained or {}, target, template=template, image_mode=image_mode, dtype=dtype
    )
    if tokenizer is not None:
        model.take_tokenizer(tokenizer)
    if model.missing:
        raise ValueError(
            "these parameters have no numbers, so that the model cannot be written: "
            + ", ".join(model.missing)
        )
    with files.publish_folder(target) as folder:
        if layout == ORBAX.name:
            orbax.write(folder, model)
        else:
            _write_foreign(folder, LAYOUTS[layout], model)
        checksums.write_list(folder)


def _write_foreign(folder: str, layout: Layout, model: Source) -> None:
    if model.layout == layout.name:
        beside = model.sidecars
    else:
        beside = _SIDECARS[layout.name](model)
    rows = model.words if layout is ORIGINAL else model.config.llm.vocab_size
    safetensors.write(folder, outgoing(layout, model, rows))
    for name, content in beside.items():
        files.write_bytes(files.join(folder, name), content)


def outgoing(layout: Layout, model: Source, vocabulary_rows: int) -> list[Outgoing]:
    """The tensors to write in a layout, with so many rows of the vocabulary."""
    config = with_vocabulary(model.config, vocabulary_rows)
    tensors = []
    for foreign in layout.foreign(config).values():
        info = Info(foreign.shape, model.dtype(foreign.pieces[0].address))
        tensors.append(Outgoing(foreign.name, info, functools.partial(_compose, model, foreign)))
    return tensors


def _compose(model: Source, foreign: Foreign) -> Shaped[np.ndarray, "..."]:
    """A foreign tensor of the parts of our parameters that make it."""
    parts = [piece.to_theirs(model.read(piece.address, piece.index)) for piece in foreign.pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
