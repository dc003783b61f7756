"""Decodes pictures and makes them the tower's square, bit for bit as transformers does with PIL.

Four modes, LLaVA's and SigLIP's own:

    pad      centre on a square of the longer side, filled with the mean colour; resize to `size`
    crop     resize the shorter side to `size`; cut the centre
    stretch  resize both sides to `size`
    anyres   the whole, and tiles of it at a higher resolution: see `tiles`

Source: `expand2square` of haotian-liu/LLaVA; CLIPImageProcessorPil, LlavaImageProcessorPil and
SiglipImageProcessorPil of transformers 5. The uint8 pixels are equal to theirs. As there, EXIF
orientation is ignored, and of an animation the first frame is taken.
"""

import functools
import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data import jpeg
from astrollava_jax.data.faults import Kind, RecordError

Square = Literal["pad", "crop", "stretch"]
"""The modes in which a picture is one image."""

Mode = Literal["pad", "crop", "stretch", "anyres"]

MAX_PIXELS = 2**28
"""Most pixels that a picture may have, at any moment of its preparation: Pillow holds a pixel in
four bytes, so this is 1 GiB in each worker. (A file of a few kilobytes can state any size.)"""

FORMS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, by Pillow's names. Of the others that it knows, EPS is a program, which is given to
Ghostscript to run; some begin with no sign, so that anything may be taken for them; most are met by
no one."""

MAX_SCANS = 100
"""Most scans of a JPEG: a progressive one has some ten, and each passes over all its pixels. (A
file of 300 KB can have ten thousand.)"""

JPEG_QUALITY = 95
"""For pictures that are stored smaller than they came; chroma is kept at full resolution."""

# Pillow's own limit is one number for the whole process: it refuses at twice this number.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_JPEG_START = b"\xff\xd8\xff"
_SIMPLE_COLOURS = ("YCbCr", "Gray")
_STORED_FORMATS = ("JPEG", "PNG")  # those of TFDS's image feature
_SIXTEEN_BITS = 65535


class ImageError(RecordError):
    """A picture that cannot be decoded, or is too large to be."""

    def __init__(self, message: str, kind: Kind = "image"):
        super().__init__(message, kind)


def prepare(encoded: bytes, mode: Square, facts: ImageFacts) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as the tower's square of pixels, not yet normalised.

    Raises:
        ImageError: if the bytes are no picture that can be decoded, or it is too large.
    """
    image = _decoded(encoded)
    if isinstance(image, np.ndarray):
        if (square := _at_size(image, mode, facts)) is not None:
            return square
        image = Image.fromarray(image)
    return np.asarray(_SQUARES[mode](image, facts))


def normalize(
    pixels: UInt8[np.ndarray, "*batch h w 3"], facts: ImageFacts
) -> Float32[np.ndarray, "*batch h w 3"]:
    """What the tower sees of the pixels: scaled to [0, 1], less the mean, over the deviation."""
    scaled = (pixels * (1 / 255)).astype(np.float32)
    return (scaled - np.array(facts.pixel_mean, np.float32)) / np.array(facts.pixel_std, np.float32)


def fit(encoded: bytes, size: int, mode: Mode) -> bytes:
    """The picture as records keep it: no larger than training at `size` pixels needs.

    A JPEG or PNG that is small enough stays as it is. Others are made RGB and shrunk until the
    longer side (the shorter one in `crop` and `stretch`) is `size`; what came as JPEG is written as
    JPEG (quality 95, full chroma), the rest as PNG, without loss. Shrunk pictures give nearly the
    pixels that the originals would have given, not the same bits.

    Raises:
        ImageError: if the bytes are no picture that can be decoded, or it is too large.
    """
    image = decode(encoded)
    stored_format = _format(encoded)
    side = min(image.size) if mode in ("crop", "stretch") else max(image.size)
    if side <= size and stored_format in _STORED_FORMATS:
        return encoded
    if side > size:
        image = _shrink(image, size / side)
    content = io.BytesIO()
    if stored_format == "JPEG":
        image.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(content, "PNG")
    return content.getvalue()


def size_of(encoded: bytes) -> tuple[int, int]:
    """Height and width of a picture, as its header states them: nothing is decoded.

    Raises:
        ImageError: if the bytes begin no picture, or it is too large.
    """
    try:
        with _open(encoded) as image:
            return image.height, image.width
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything
        raise ImageError(
            f"cannot read the header of this picture of {len(encoded)} bytes: {_why(error)}"
        ) from None


def decode(encoded: bytes) -> Image.Image:
    """The picture in RGB.

    Raises:
        ImageError: if the bytes are no picture that can be decoded, or it is too large.
    """
    image = _decoded(encoded)
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _decoded(encoded: bytes) -> UInt8[np.ndarray, "h w 3"] | Image.Image:
    """The picture in RGB, as it comes out of its decoder."""
    try:
        if encoded.startswith(_JPEG_START):
            _refuse_scans(encoded)
            if (pixels := _decode_jpeg(encoded)) is not None:
                return pixels
        with _open(encoded) as image:
            return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything
        raise ImageError(
            f"cannot decode this picture of {len(encoded)} bytes: {_why(error)}"
        ) from None


def _open(encoded: bytes) -> Image.Image:
    """The picture, of which only the header has been read."""
    image = Image.open(io.BytesIO(encoded), formats=FORMS)
    _refuse_large(*image.size)
    return image


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own words hold an address in memory
        return f"it is none of {', '.join(FORMS)}"
    return f"{type(error).__name__}: {error}"


def _decode_jpeg(encoded: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels of an ordinary JPEG, in two thirds of Pillow's time; None leaves it to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in _SIMPLE_COLOURS:
            return None
        _refuse_large(int(width), int(height))
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ImageError:
        raise
    except ValueError:  # damaged, or a kind it does not know: Pillow may do better, or says why not
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, as in transformers."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8: value / 257, rounded, so that 65535 becomes 255.

    Pillow (and so transformers) would clip everything above 255 to white. Colour of 16 bits never
    comes here: Pillow reads its upper bytes.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > _SIXTEEN_BITS:
        raise ImageError(
            f"pixels of mode {image.mode} from {values.min()} to {values.max()}: expected at most "
            "16 bits, since wider ones do not say what is white; convert the file to 8 or 16 bits"
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _at_size(
    pixels: UInt8[np.ndarray, "h w 3"], mode: Square, facts: ImageFacts
) -> UInt8[np.ndarray, "size size 3"] | None:
    """The square of a picture that is as large as it is to be, as records keep it; else None."""
    height, width, _ = pixels.shape
    size = facts.size
    if (max if mode == "pad" else min)(height, width) != size:
        return None
    top, left = abs(size - height) // 2, abs(size - width) // 2
    if mode == "crop":
        return pixels[top : top + size, left : left + size]
    if mode == "stretch":
        return pixels if height == width else None
    square = _blank(size, facts.pad_color).copy()
    square[top : top + height, left : left + width] = pixels
    return square


@functools.lru_cache(maxsize=4)
def _blank(size: int, colour: tuple[int, int, int]) -> UInt8[np.ndarray, "size size 3"]:
    return np.full((size, size, 3), colour, np.uint8)


def _pad(image: Image.Image, facts: ImageFacts) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    _refuse_large(side, side)
    square = Image.new("RGB", (side, side), facts.pad_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square.resize((facts.size, facts.size), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, facts: ImageFacts) -> Image.Image:
    size = facts.size
    width, height = image.size
    shorter = min(width, height)
    wide, high = int(size * width / shorter), int(size * height / shorter)
    _refuse_large(wide, high)
    left, top = (wide - size) // 2, (high - size) // 2
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def _stretch(image: Image.Image, facts: ImageFacts) -> Image.Image:
    return image.resize((facts.size, facts.size), Image.Resampling.BICUBIC)


_SQUARES: dict[Square, Callable[[Image.Image, ImageFacts], Image.Image]] = {
    "pad": _pad,
    "crop": _crop,
    "stretch": _stretch,
}


def _shrink(image: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _format(encoded: bytes) -> str:
    with _open(encoded) as image:
        # A JPEG with further pictures behind the first is called MPO.
        return "JPEG" if image.format == "MPO" else image.format or ""


def _refuse_scans(encoded: bytes) -> None:
    if (scans := jpeg.scans(encoded)) > MAX_SCANS:
        raise ImageError(f"a JPEG of {scans} scans: expected at most {MAX_SCANS}")


def _refuse_large(width: int, height: int) -> None:
    if not width * height:
        raise ImageError(f"{width} x {height} pixels: expected at least one")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels: expected at most {MAX_PIXELS} in all; shrink it, or, if "
            "it is merely long, cut it"
        )
