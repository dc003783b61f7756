"""Prompts: pictures in any form and token ids, made ready for the model and laid in rows."""

import dataclasses
import io
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from astrollava_jax import files
from astrollava_jax.batch import Batch, ImageFacts, empty_rows
from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.data.image import Mode
from astrollava_jax.data.pieces import Rendered
from astrollava_jax.data.samples import expand
from astrollava_jax.data.tiles import layout_of, prepare_tiles

Picture = bytes | str | PathLike[str] | Image.Image | Any
"""An encoded file's bytes, a path, a PIL image, or an array of uint8 `[h, w]` or `[h, w, channels]`
(uint16 for grey of 16 bits)."""

_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the decoder sees, with as many positions per picture as it has features."""

    tokens: Int32[np.ndarray, "T"]
    feature_index: Int32[np.ndarray, "T"]
    """As `feature_index` of `Batch`, counted within the prompt."""
    images: tuple[UInt8[np.ndarray, "h w 3"], ...]
    """What the tower encodes: one per picture, or all of its tiles."""

    @property
    def places(self) -> int:
        """Images that its row has room for, the next of few numbers: 1 2 3 4 6 8 12 16 24 32.

        At least one, as a tower takes no empty stack; and few, as each is compiled anew.
        """
        count = max(1, len(self.images))
        step = 2 ** max(0, (count - 1).bit_length() - 2)
        return -(-count // step) * step


def make_prompt(
    ids: Sequence[int], pictures: Sequence[Picture], image_id: int, mode: Mode, facts: ImageFacts
) -> Prompt:
    """Gives each image token of `ids` its positions, and prepares the pictures.

    Raises:
        ValueError: if pictures and image tokens differ in number, or a picture cannot be read.
    """
    tokens = np.array(ids, np.int32)
    markers = int(np.count_nonzero(tokens == image_id))
    if markers != len(pictures):
        raise ValueError(
            f"expected one picture per {IMAGE_MARKER} marker, found {markers} marker(s) and "
            f"{len(pictures)} picture(s)"
        )
    contents = [encoded(picture) for picture in pictures]
    layouts = [layout_of(content, mode, facts) for content in contents]
    rendered = Rendered(tokens, np.zeros(len(tokens), bool))
    words = expand(rendered, image_id, layouts, facts.tokens)
    return Prompt(
        tokens=words.tokens,
        feature_index=words.features,
        images=tuple(
            image for content in contents for image in prepare_tiles(content, mode, facts)
        ),
    )


def to_batch(
    prompts: Sequence[Prompt], rows: int, length: int, images: int, facts: ImageFacts
) -> Batch:
    """One row per prompt, then empty rows. Positions go on behind a prompt, where answers grow."""
    batch = empty_rows(rows, length, 0, images, 0, facts)
    batch.positions[:] = np.arange(length)
    for row, prompt in enumerate(prompts):
        end = len(prompt.tokens)
        batch.tokens[row, :end] = prompt.tokens
        batch.segment_ids[row, :end] = 1
        batch.feature_index[row, :end] = prompt.feature_index
        for number, pixels in enumerate(prompt.images):
            batch.images[row, number] = pixels
    return batch


def pictures_per_prompt(images: Sequence[Any] | None, count: int) -> list[list[Picture]]:
    """The pictures of each prompt: nothing for none, one picture, or a list of several per prompt.

    Raises:
        ValueError: if there is not one entry per prompt.
    """
    if images is None or len(images) == 0:
        return [[] for _ in range(count)]
    if len(images) != count:
        raise ValueError(
            f"expected one entry of images per prompt, found {len(images)} for {count} prompt(s): "
            "put the pictures of one prompt in a list of their own, and None where there is none"
        )
    return [_as_list(entry) for entry in images]


def encoded(picture: Picture) -> bytes:
    """The bytes of a file that holds the picture, without loss.

    Raises:
        FileNotFoundError: if it is a path and nothing is there.
        ValueError: if it is an array of another shape or dtype than a picture has.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | PathLike):
        return files.read_bytes(picture)
    image = picture if isinstance(picture, Image.Image) else _from_array(np.asarray(picture))
    content = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(content, "PNG", compress_level=1)
    else:
        image.save(content, "TIFF")
    return content.getvalue()


def _as_list(entry: Any) -> list[Picture]:
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]


def _from_array(pixels: np.ndarray) -> Image.Image:
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    color = pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8
    if not grey and not color:
        raise ValueError(
            "a picture as an array: expected uint8 [h, w], [h, w, 3] or [h, w, 4], or uint16 "
            f"[h, w], found {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(pixels)
