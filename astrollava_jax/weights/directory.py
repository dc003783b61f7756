"""The model in a directory, whichever layout that has."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.chat_export import named_template
from astrollava_jax.data.image import Mode
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.weights import foreign_config, llava, sidecars, vocabulary
from astrollava_jax.weights.binding import Bound, bind, conversions
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.llava import DECODER, HF, ORBAX, ORIGINAL, PEFT, PROJECTOR, TOWER
from astrollava_jax.weights.llava import Layout as Layout
from astrollava_jax.weights.orbax import OrbaxSource
from astrollava_jax.weights.peft import base_of, read_adapter
from astrollava_jax.weights.pixels import read_pixels
from astrollava_jax.weights.recognise import MM_PROJECTOR, recognise
from astrollava_jax.weights.source import Source
from astrollava_jax.weights.tensors import Renamed, Tensors, has_tensors, open_tensors
from astrollava_jax.weights.torch_file import TorchFile

Tree = Mapping[str, Any]


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


def open_model(
    folder: files.Where,
    *,
    vision: files.Where | None = None,
    llm: files.Where | None = None,
    base: files.Where | None = None,
) -> Source:
    """A whole model, in whichever layout.

    Args:
        folder: its directory.
        vision: the directory of its tower, for an original directory that only names it.
        llm: the directory of its decoder, for one that holds a projector alone.
        base: the directory of the model that an adapter belongs to, unless its config names it.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if the layout is unknown, or tensors and config do not fit; all faults at once.
    """
    layout = recognise(folder)
    if layout is PEFT:
        whole = base_of(folder, base)
        if llm is not None or recognise(whole) is PEFT:
            raise ValueError(f"{folder}: is an adapter: give one whole model as its --base")
        return read_adapter(folder, open_model(whole, vision=vision))
    if base is not None:
        raise ValueError(
            f"{folder}: has the layout {layout.name}; only an adapter or a run has a base"
        )
    if layout is PROJECTOR:
        return _open_projector(str(folder), vision, llm)
    if llm is not None:
        raise ValueError(
            f"{folder}: has a decoder of its own, so that --llm {llm} has no place in it"
        )
    if vision is not None and layout is not ORIGINAL:
        raise ValueError(
            f"{folder}: has the layout {layout.name}; a tower is added only to the layout llava, "
            "or to a decoder (--vision DIR --llm DIR)"
        )
    if layout is ORBAX:
        return OrbaxSource(folder)
    if layout is HF:
        return _open_hf(str(folder))
    if layout is ORIGINAL:
        return _open_original(str(folder), None if vision is None else str(vision))
    raise ValueError(
        f"{folder}: holds a bare {layout.name}, no LLaVA: join a tower and a decoder with "
        "--vision DIR --llm DIR"
    )


def join(vision: files.Where, llm: files.Where) -> FilesSource:
    """A tower and a decoder with a fresh projector between them, as LLaVA 1.5 begins.

    Raises:
        ValueError: if the directories are no tower and no decoder, or have faults; as `open_model`.
    """
    for folder, wanted in ((vision, TOWER), (llm, DECODER)):
        if recognise(folder) is not wanted:
            raise ValueError(
                f"{folder}: expected the layout {wanted.name}, found {recognise(folder).name}"
            )
    vision, llm = str(vision), str(llm)
    config = LlavaConfig(
        vision=_tower(vision),
        projector=MlpConfig(depth=2),
        llm=_told(llm, foreign_config.read_decoder, _config(llm)),
    )
    bound = _bind(TOWER, config, open_tensors(vision)) | _bind(DECODER, config, open_tensors(llm))
    missing = tuple(address for address in llava.shapes(config) if address not in bound)
    source = _describe(llm, config, bound, layout=None, image_mode="pad", missing=missing)
    if source.tokenizer_folder and source.tokenizer.image_id < source.words:
        source.words = vocabulary.own_words(source.tokenizer)  # it was made for images before
    return source


def _open_hf(folder: str) -> Source:
    tree, processor = _config(folder), _processor(folder)
    config = _told(folder, foreign_config.read_hf, tree, processor)
    # A shape without numbers is a model too: one to be made from a seed, or to be planned for.
    bound = _bind(HF, config, open_tensors(folder)) if has_tensors(folder) else {}
    missing = tuple(address for address in llava.shapes(config) if address not in bound)
    pixels = read_pixels(processor, config.vision)
    if pixels.mode == "anyres" and pixels.grid != config.grid:
        raise ValueError(
            f"{folder}: the canvases of config.json are {config.grid}, those of "
            f"preprocessor_config.json {pixels.grid}"
        )
    mode = "anyres" if config.grid and not processor else pixels.mode
    source = _describe(folder, config, bound, layout=HF.name, image_mode=mode, missing=missing)
    image = tree.get("image_token_index", 32000)
    if source.tokenizer_folder is None:
        source.words = min(image, source.words)
        return source
    if image != source.tokenizer.image_id:
        raise ValueError(
            f"{folder}: the tokenizer does not fit the model: <image> is "
            f"{source.tokenizer.image_id} there, and image_token_index is {image} in config.json"
        )
    source.words = vocabulary.own_words(source.tokenizer)
    return source


def _open_original(folder: str, vision: str | None) -> Source:
    tree, tensors = _config(folder), open_tensors(folder)
    embedded = any(name.startswith(ORIGINAL.vision[1]) for name in tensors.infos)
    tower = _tower(vision) if vision else _told(folder, foreign_config.tower_of_original, tree)
    if vision and embedded and foreign_config.tower_of_original(tree) is not None:
        raise ValueError(f"{folder}: has its tower in it, so that --vision {vision} has no place")
    if vision is None and (tower is None or not embedded):
        lacks = (
            "heads of its vision tower are not known" if embedded else "vision tower is not in it"
        )
        raise ValueError(
            f"{folder}: the {lacks}: give --vision DIR with the directory of "
            f"{tree.get('mm_vision_tower')}"
        )
    config = _told(folder, foreign_config.read_original, tree, tower)
    parts = tuple(part for part in ORIGINAL.parts if embedded or part != "vision")
    bound = _bind(ORIGINAL, config, tensors, parts)
    if vision and not embedded:
        bound |= _bind(TOWER, config, open_tensors(vision))
    square = read_pixels({}, config.vision).mode
    said = tree.get("image_aspect_ratio")
    mode: Mode = said if said in ("pad", "anyres") else square
    return _describe(folder, config, bound, layout=ORIGINAL.name, image_mode=mode)


def _open_projector(folder: str, vision: files.Where | None, llm: files.Where | None) -> Source:
    """LLaVA's stage 1 alone: `mm_projector.bin` between a tower and a decoder from elsewhere."""
    tree = _config(folder)
    if vision is None or llm is None:
        raise ValueError(
            f"{folder}: holds a projector alone, trained between {tree.get('mm_vision_tower')} and "
            f"{tree.get('_name_or_path')}: give both directories, --vision DIR and --llm DIR"
        )
    parts = join(vision, llm)
    config = _told(folder, foreign_config.read_original, tree, parts.config.vision)
    config = dataclasses.replace(config, llm=parts.config.llm)
    projector = Renamed(TorchFile(files.join(folder, MM_PROJECTOR)), _projector_name)
    bound = _bind(PROJECTOR, config, Tensors(folder, [projector]))
    parts.config, parts.missing = config, ()
    parts.image_mode = "pad" if tree.get("image_aspect_ratio") == "pad" else "crop"
    return parts.with_parameters(bound)


def _projector_name(name: str) -> str:
    """LLaVA's own loader goes by what follows this word."""
    return "model." + name[name.find("mm_projector.") :] if "mm_projector." in name else name


def _describe(
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


def _bind(
    layout: Layout, config: LlavaConfig, tensors: Tensors, parts: tuple[str, ...] | None = None
) -> dict[str, Bound]:
    wanted = layout.foreign(config, tensors.infos.keys(), parts)
    return bind(wanted, tensors, layout.ignored, layout.copies(config))


def _template(tokenizer: Tokenizer | None) -> str:
    """The row of templates that the chat template equals, else `model`; without one, LLaVA's."""
    if tokenizer is None or tokenizer.chat_template is None:
        return "vicuna_v1"
    return named_template(tokenizer.chat_template) or "model"


def _tower(folder: str) -> Any:
    return _told(folder, foreign_config.read_tower, _config(folder), _processor(folder))


def _config(folder: files.Where) -> Tree:
    return files.read_json_object(files.join(folder, "config.json"))


def _processor(folder: str) -> Tree:
    """What the directory says of pictures: a file of its own, or a part of the processor's."""
    own = files.join(folder, "preprocessor_config.json")
    if files.exists(own):
        return files.read_json_object(own)
    whole = files.join(folder, "processor_config.json")
    return files.read_json_object(whole).get("image_processor", {}) if files.exists(whole) else {}


def _told(folder: str, read: Callable[..., Any], *trees: Any) -> Any:
    """What a reader of configs makes of them; its errors name the folder."""
    try:
        return read(*trees)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
