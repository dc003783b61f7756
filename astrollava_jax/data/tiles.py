"""Pictures of any resolution, as LLaVA-NeXT sees them: the whole, and tiles of a larger canvas.

    picture     canvas of two tiles    base  tiles       decoder positions, of 2 x 2 features each
    .-------.   .---+---.              .-.   .-. .-.     0  1  2  3                  the base
    |       |   |   |   |              | |   | | | |     4  5  8  9  newline         a row of
    '-------'   '---+---'              '-'   '-' '-'     6  7 10 11  newline         both tiles

The canvas is the one of the model's grid that keeps most of the picture. What black the picture
leaves on it takes no positions. Everything that the model is told of this are numbers of features.

Source: LLaVA-NeXT (`process_anyres_image` and `spatial_unpad` of haotian-liu/LLaVA) as
LlavaNextImageProcessorPil and `pack_image_features` of transformers 5 do it: pixels and order are
equal to theirs. Their case of a picture without tiles does not arise: a canvas holds one at least.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from astrollava_jax.batch import NEWLINE, ImageFacts
from astrollava_jax.data.image import ImageError, Mode, decode, prepare, size_of

Size = tuple[int, int]
"""Height and width in pixels."""

Grid = tuple[Size, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands at the decoder positions of one picture."""

    tiles: int
    """How many images the tower encodes for it, the base among them."""
    features: Int32[np.ndarray, "n"]
    """For each position, which of the features of its tiles, laid end to end, or `NEWLINE`."""


def layout_of(encoded: bytes, mode: Mode, facts: ImageFacts) -> Layout:
    """The positions of a picture, of which only the header is read, if that.

    Raises:
        ImageError: if the picture's size must be known and cannot be read.
        ValueError: if the model has no grid and the mode needs one.
    """
    return layout(size_of(encoded), facts) if mode == "anyres" else one_image(facts)


def prepare_tiles(
    encoded: bytes, mode: Mode, facts: ImageFacts
) -> UInt8[np.ndarray, "tiles size size 3"]:
    """All images that the tower encodes for a picture, not yet normalised.

    Raises:
        ImageError: if the bytes are no picture that can be decoded, or it is too large.
        ValueError: if the model has no grid and the mode needs one.
    """
    if mode != "anyres":
        return prepare(encoded, mode, facts)[None]
    image, stated = decode(encoded), size_of(encoded)
    size = (image.height, image.width)
    if size != stated:
        raise ImageError(f"its header states {_words(stated)} pixels, but it has {_words(size)}")
    base = np.asarray(image.resize((facts.size, facts.size), Image.Resampling.BICUBIC))
    canvas = _on_canvas(image, choose_canvas(size, grid_of(facts)))
    rows, columns = (side // facts.size for side in canvas.shape[:2])
    tiles = canvas.reshape(rows, facts.size, columns, facts.size, 3).swapaxes(1, 2)
    return np.concatenate([base[None], tiles.reshape(-1, *base.shape)])


@functools.lru_cache(maxsize=4)
def one_image(facts: ImageFacts) -> Layout:
    """The positions of a picture that is one square image."""
    return Layout(1, np.arange(facts.tokens, dtype=np.int32))


def layout(size: Size, facts: ImageFacts) -> Layout:
    """The positions of a picture of this size.

    Raises:
        ValueError: if the model has no grid.
    """
    canvas, side = choose_canvas(size, grid_of(facts)), facts.size // facts.patch
    rows, columns = canvas[0] // facts.size, canvas[1] // facts.size
    numbers = np.arange((1 + rows * columns) * facts.tokens, dtype=np.int32)
    base, tiles = numbers[: facts.tokens], numbers[facts.tokens :]
    tiles = tiles.reshape(rows, columns, side, side).swapaxes(1, 2)
    seen = _unpad(tiles.reshape(rows * side, columns * side), size)
    lines = np.pad(seen, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return Layout(1 + rows * columns, np.concatenate([base, lines.ravel()]))


def choose_canvas(size: Size, grid: Grid) -> Size:
    """The canvas that keeps most of a picture's pixels; of equals the smallest, then the first."""
    height, width = size

    def worth(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -canvas[0] * canvas[1]

    return max(grid, key=worth)


def grid_of(facts: ImageFacts) -> Grid:
    """The model's canvases.

    Raises:
        ValueError: if it has none.
    """
    if facts.grid is None:
        raise ValueError(
            "image: anyres cuts pictures into tiles, but this model was made for one square image "
            "each: give it canvases by init.grid in the run's file (LLaVA-NeXT's are "
            "[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]), or choose pad or crop"
        )
    return facts.grid


def _on_canvas(image: Image.Image, canvas: Size) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as large as fits, in the middle of black."""
    scales = canvas[0] / image.height, canvas[1] / image.width
    if scales[1] < scales[0]:
        height, width = min(math.ceil(image.height * scales[1]), canvas[0]), canvas[1]
    else:
        height, width = canvas[0], min(math.ceil(image.width * scales[0]), canvas[1])
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    pixels = np.zeros((*canvas, 3), np.uint8)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels[top : top + height, left : left + width] = np.asarray(resized)
    return pixels


def _unpad(tiles: Int32[np.ndarray, "H W"], size: Size) -> Int32[np.ndarray, "h w"]:
    """The features of the canvas that see a picture of this size, not the black beside it.

    Rounded to seven digits first, as in transformers, so that 23.999999999 lines are 24. LLaVA's
    own code does not round, and may keep another line in such a case.
    """
    (height, width), (rows, columns) = size, tiles.shape
    if width / height > columns / rows:
        inside = int(round(height * (columns / width), 7))
        cut = (rows - inside) // 2
        return tiles[cut : rows - cut]
    inside = int(round(width * (rows / height), 7))
    cut = (columns - inside) // 2
    return tiles[:, cut : columns - cut]


def _words(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
