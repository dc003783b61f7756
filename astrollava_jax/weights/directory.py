"""The model in a directory, whichever layout that has."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.weights import foreign_config, llava, vocabulary
from astrollava_jax.weights.files_source import FilesSource, bound_by, describe
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
from astrollava_jax.weights.orbax import OrbaxSource
from astrollava_jax.weights.peft import base_of, read_adapter
from astrollava_jax.weights.pixels import read_pixels
from astrollava_jax.weights.recognise import MM_PROJECTOR, recognise
from astrollava_jax.weights.source import Source
from astrollava_jax.weights.tensors import Renamed, Tensors, has_tensors, open_tensors
from astrollava_jax.weights.torch_file import TorchFile

Tree = Mapping[str, Any]


def open_model(
    folder: files.Where,
    *,
    vision: files.Where | None = None,
    llm: files.Where | None = None,
    base: files.Where | None = None,
    said: str = "--{}",
) -> Source:
    """A whole model, in whichever layout.

    Args:
        folder: its directory.
        vision: the directory of its tower, for an original directory that only names it.
        llm: the directory of its decoder, for one that holds a projector alone.
        base: the directory of the model that an adapter belongs to, unless its config names it.
        said: how the user gives the last three, for what is told: `--vision`, or `init.vision`.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if the layout is unknown, or tensors and config do not fit; all faults at once.
    """
    layout = recognise(folder)
    if layout is PEFT:
        return _open_adapter(folder, vision, llm, base, said)
    if base is not None:
        raise ValueError(
            f"{folder}: has the layout {layout.name}; only an adapter or a run has a base, so that "
            f"{said.format('base')} {base} has no place"
        )
    if layout is PROJECTOR:
        return _open_projector(str(folder), vision, llm, said)
    if llm is not None:
        raise ValueError(
            f"{folder}: has a decoder of its own, so that {said.format('llm')} {llm} has no place "
            "in it"
        )
    if vision is not None and layout is not ORIGINAL:
        raise ValueError(
            f"{folder}: has the layout {layout.name}, so that {said.format('vision')} {vision} has "
            "no place: a tower is added only to the layout llava, or to a decoder "
            f"({said.format('vision')} DIR with {said.format('llm')} DIR)"
        )
    if layout is ORBAX:
        return OrbaxSource(folder)
    if layout is HF:
        return _open_hf(str(folder))
    if layout is ORIGINAL:
        return _open_original(str(folder), None if vision is None else str(vision), said)
    raise ValueError(
        f"{folder}: holds {layout.holds}, no LLaVA: join a tower and a decoder, by `astrollava "
        "convert --vision DIR --llm DIR DST` or by init.vision and init.llm in a run's file"
    )


def join(vision: files.Where, llm: files.Where, said: str = "--{}") -> FilesSource:
    """A tower and a decoder with a fresh projector between them, as LLaVA 1.5 begins.

    Raises:
        ValueError: if the directories are no tower and no decoder, or have faults; as `open_model`.
    """
    if (recognise(vision), recognise(llm)) == (DECODER, TOWER):
        raise ValueError(
            f"{said.format('vision')} {vision} holds a bare decoder and {said.format('llm')} {llm} "
            "a vision tower: exchange the two"
        )
    _check_part(vision, TOWER, said.format("vision"))
    _check_part(llm, DECODER, said.format("llm"))
    vision, llm = str(vision), str(llm)
    config = LlavaConfig(
        vision=_tower(vision),
        projector=MlpConfig(depth=2),
        llm=told(llm, foreign_config.read_decoder, config_file(llm)),
    )
    bound = bound_by(TOWER, config, open_tensors(vision))
    bound |= bound_by(DECODER, config, open_tensors(llm))
    missing = tuple(address for address in llava.shapes(config) if address not in bound)
    source = describe(llm, config, bound, layout=None, image_mode="pad", missing=missing)
    if source.tokenizer_folder and source.tokenizer.image_id < source.words:
        source.words = vocabulary.own_words(source.tokenizer)  # it was made for images before
    return source


def _check_part(folder: files.Where, wanted: Layout, option: str) -> None:
    """Raises unless a directory is the part that it was given as."""
    found = recognise(folder)
    if found is not wanted:
        raise ValueError(
            f"{option} {folder}: expected the directory of {wanted.holds}, found {found.holds} "
            f"(layout {found.name})"
        )


def _open_adapter(
    folder: files.Where,
    vision: files.Where | None,
    llm: files.Where | None,
    base: files.Where | None,
    said: str,
) -> Source:
    whole = base_of(folder, base, said.format("base"))
    if llm is not None:
        raise ValueError(
            f"{folder}: is an adapter, whose decoder is its base's, so that {said.format('llm')} "
            f"{llm} has no place"
        )
    found = recognise(whole)
    if found not in (HF, ORIGINAL, ORBAX):
        raise ValueError(
            f"{folder}: is an adapter, and {whole} holds {found.holds}: give one whole model as "
            f"its {said.format('base')}"
        )
    return read_adapter(folder, open_model(whole, vision=vision, said=said))


def _open_hf(folder: str) -> Source:
    tree, processor = config_file(folder), processor_file(folder)
    config = told(folder, foreign_config.read_hf, tree, processor)
    # A shape without numbers is a model too: one to be made from a seed, or to be planned for.
    bound = bound_by(HF, config, open_tensors(folder)) if has_tensors(folder) else {}
    missing = tuple(address for address in llava.shapes(config) if address not in bound)
    pixels = read_pixels(processor, config.vision)
    if pixels.mode == "anyres" and pixels.grid != config.grid:
        raise ValueError(
            f"{folder}: the canvases of config.json are {config.grid}, those of "
            f"preprocessor_config.json {pixels.grid}"
        )
    mode = "anyres" if config.grid and not processor else pixels.mode
    source = describe(folder, config, bound, layout=HF.name, image_mode=mode, missing=missing)
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


def _open_original(folder: str, vision: str | None, said: str) -> Source:
    if vision is not None:
        _check_part(vision, TOWER, said.format("vision"))
    tree, tensors = config_file(folder), open_tensors(folder)
    embedded = any(name.startswith(ORIGINAL.vision[1]) for name in tensors.infos)
    tower = _tower(vision) if vision else told(folder, foreign_config.tower_of_original, tree)
    if vision and embedded and foreign_config.tower_of_original(tree) is not None:
        raise ValueError(
            f"{folder}: has its tower in it, so that {said.format('vision')} {vision} has no place"
        )
    if vision is None and (tower is None or not embedded):
        lacks = (
            "heads of its vision tower are not known" if embedded else "vision tower is not in it"
        )
        raise ValueError(
            f"{folder}: the {lacks}: give {said.format('vision')} DIR with the directory of "
            f"{tree.get('mm_vision_tower')}"
        )
    config = told(folder, foreign_config.read_original, tree, tower)
    parts = tuple(part for part in ORIGINAL.parts if embedded or part != "vision")
    bound = bound_by(ORIGINAL, config, tensors, parts)
    if vision and not embedded:
        bound |= bound_by(TOWER, config, open_tensors(vision))
    square = read_pixels({}, config.vision).mode
    aspect = tree.get("image_aspect_ratio")
    mode: Mode = aspect if aspect in ("pad", "anyres") else square
    return describe(folder, config, bound, layout=ORIGINAL.name, image_mode=mode)


def _open_projector(
    folder: str, vision: files.Where | None, llm: files.Where | None, said: str
) -> Source:
    """LLaVA's stage 1 alone: `mm_projector.bin` between a tower and a decoder from elsewhere."""
    tree = config_file(folder)
    if vision is None or llm is None:
        raise ValueError(
            f"{folder}: holds a projector alone, trained between {tree.get('mm_vision_tower')} and "
            f"{tree.get('_name_or_path')}: give both directories, {said.format('vision')} DIR and "
            f"{said.format('llm')} DIR"
        )
    parts = join(vision, llm, said)
    config = told(folder, foreign_config.read_original, tree, parts.config.vision)
    config = dataclasses.replace(config, llm=parts.config.llm)
    projector = Renamed(TorchFile(files.join(folder, MM_PROJECTOR)), _projector_name)
    bound = bound_by(PROJECTOR, config, Tensors(folder, [projector]))
    parts.config, parts.missing = config, ()
    parts.image_mode = "pad" if tree.get("image_aspect_ratio") == "pad" else "crop"
    return parts.with_parameters(bound)


def _projector_name(name: str) -> str:
    """LLaVA's own loader goes by what follows this word."""
    return "model." + name[name.find("mm_projector.") :] if "mm_projector." in name else name


def _tower(folder: str) -> Any:
    return told(folder, foreign_config.read_tower, config_file(folder), processor_file(folder))


def config_file(folder: files.Where) -> Tree:
    """What the directory says of its model."""
    return files.read_json_object(files.join(folder, "config.json"))


def processor_file(folder: str) -> Tree:
    """What the directory says of pictures: a file of its own, or a part of the processor's."""
    own = files.join(folder, "preprocessor_config.json")
    if files.exists(own):
        return files.read_json_object(own)
    whole = files.join(folder, "processor_config.json")
    return files.read_json_object(whole).get("image_processor", {}) if files.exists(whole) else {}


def told(folder: str, read: Callable[..., Any], *trees: Any) -> Any:
    """What a reader of configs makes of them; its errors name the folder."""
    try:
        return read(*trees)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
