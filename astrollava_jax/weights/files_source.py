"""A model in foreign files, of one directory or of several."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.chat_export import named_template
from astrollava_jax.data.image import Mode
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.weights import llava, sidecars, vocabulary
from astrollava_jax.weights.binding import Bound, bind, conversions
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.llava import HF, Layout
from astrollava_jax.weights.source import Source
from astrollava_jax.weights.tensors import Tensors


class FilesSource(Source):
    """A model in foreign files, of one directory or of several."""

    def __init__(self, bound: Mapping[str, Bound | vocabulary.Grown], **fields: Any):
        super().__init__(**fields)
        self._bound = bound

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or a part of it; what is not needed stays in the files."""
        return self._bound[address].read(index)

    def dtype(self, address: str) -> np.dtype:
        """The dtype in the files."""
        return self._bound[address].dtype

    def fingerprint(self, address: str) -> str:
        """A digest of the bytes in the files."""
        return self._bound[address].fingerprint()

    def folder_of(self, address: str) -> str:
        """The directory whose files give a parameter."""
        return self._bound[address].folder

    def files_of(self, address: str) -> tuple[str, ...]:
        """The files in which the tensors of a parameter lie."""
        return self._bound[address].files

    def with_parameters(self, bound: Mapping[str, Bound]) -> "FilesSource":
        """The same with some more parameters."""
        self._bound = {**self._bound, **bound}
        return self


def describe(
    folder: str,
    config: LlavaConfig,
    bound: dict[str, Bound],
    *,
    layout: str | None,
    image_mode: Mode,
    missing: tuple[str, ...] = (),
) -> FilesSource:
    """The source of bound parameters, with the words that the folder's tokenizer needs."""
    rows, grown, tokenizer = config.llm.vocab_size, config.llm.vocab_size, None
    notes = conversions(bound.values())
    layout = None if notes else layout  # its files say what the tensors were
    if any(files.exists(files.join(folder, f"tokenizer.{end}")) for end in ("json", "model")):
        tokenizer = Tokenizer.from_folder(folder)
        grown = vocabulary.rows_needed(tokenizer, rows, folder)
    tables: dict[str, Bound | vocabulary.Grown] = dict(bound)
    if tokenizer is not None and (grown > rows or tokenizer.extended):
        notes += (vocabulary.note(tokenizer, rows, grown),)
    if grown > rows:
        layout = None if layout == HF.name else layout  # the original never has those rows
        config = llava.with_vocabulary(config, grown)
        for address, dim in vocabulary.TABLES.items():
            if address in bound:
                tables[address] = vocabulary.Grown(bound[address], dim, grown)
    return FilesSource(
        tables,
        config=config,
        layout=layout,
        words=rows,
        image_mode=image_mode,
        template=_template(tokenizer),
        sidecars={
            name: files.read_bytes(files.join(folder, name))
            for name in sidecars.NAMES
            if files.exists(files.join(folder, name))
        },
        tokenizer_folder=None if tokenizer is None else folder,
        missing=missing,
        notes=notes,
    )


def bound_by(
    layout: Layout, config: LlavaConfig, tensors: Tensors, parts: tuple[str, ...] | None = None
) -> dict[str, Bound]:
    """The parameters that a folder's files give in a layout.

    Raises:
        ValueError: as `bind`.
    """
    wanted = layout.foreign(config, tensors.infos.keys(), parts)
    return bind(wanted, tensors, layout.ignored, layout.copies(config))


def _template(tokenizer: Tokenizer | None) -> str:
    """The row of templates that the chat template equals, else `model`; without one, LLaVA's."""
    if tokenizer is None or tokenizer.chat_template is None:
        return "vicuna_v1"
    return named_template(tokenizer.chat_template) or "model"
