"""Pictures as the world has them: each is decoded as Pillow and transformers do, or refused."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data import image
from astrollava_jax.data.image import ImageError, decode, fit, prepare, size_of

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
FIRST, SECOND = Image.fromarray(NOISE), Image.fromarray(255 - NOISE)
FACTS = ImageFacts(28, 14, 4, (122, 116, 104), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
BOMB = zlib.compress(bytes(200_000_000), 1)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    picture.copy().save(content, form, **options)  # saving leaves marks on a picture
    return content.getvalue()


def more() -> dict[str, Any]:
    return {"save_all": True, "append_images": [SECOND.copy()]}


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def with_chunks(*chunks: bytes) -> bytes:
    """A sound PNG with more behind its header."""
    png = encoded(FIRST, "PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def motion_photo() -> bytes:
    """As phones make it: a film stands behind the picture, and its bytes look like anything."""
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08frame" * 1000
    return encoded(FIRST, "JPEG") + film


def with_preview() -> bytes:
    """A picture whose EXIF holds many marks of scans, in a preview that is decoded by nobody."""
    exif = Image.Exif()
    exif[0x927C] = b"\xff\xd8" + b"\xff\xda\0\x08frame" * 1000 + b"\xff\xd9"
    return encoded(FIRST, "JPEG", exif=exif)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return encoded(FIRST, "JPEG", exif=exif)


PALETTE = FIRST.quantize(16)
PALETTE.info["transparency"] = 3

TAKEN = {
    "one pixel": encoded(FIRST.resize((1, 1)), "PNG"),
    "CMYK": encoded(FIRST.convert("CMYK"), "JPEG"),
    "a palette with transparency": encoded(PALETTE, "PNG", transparency=3),
    "turned by EXIF": turned(),
    "animated GIF": encoded(FIRST.quantize(64), "GIF", **more()),
    "animated WebP": encoded(FIRST, "WEBP", lossless=True, **more()),
    "animated PNG": encoded(FIRST, "PNG", default_image=False, **more()),
    "MPO": encoded(FIRST, "MPO", **more()),
    "motion photo": motion_photo(),
    "a preview in EXIF": with_preview(),
    "TIFF of two pages": encoded(FIRST, "TIFF", **more()),
    "AVIF": encoded(FIRST, "AVIF"),
    "JPEG 2000": encoded(FIRST, "JPEG2000"),
    "sixteen bits of colour": encoded(FIRST, "PPM"),
    "progressive JPEG": encoded(FIRST, "JPEG", progressive=True),
    "a wrong CRC behind the pixels": encoded(FIRST, "PNG")[:-4] + b"\0\0\0\0",
}
"""Of several pictures, the first; how it lay when it was taken is not asked."""


@pytest.mark.parametrize("kind", TAKEN)
def test_a_picture_is_what_transformers_makes_of_it(kind):
    with Image.open(io.BytesIO(TAKEN[kind])) as picture:
        size = {"shortest_edge": FACTS.size}
        crop = {"height": FACTS.size, "width": FACTS.size}
        processor = LlavaImageProcessorPil(
            do_pad=True, size=size, crop_size=crop, do_rescale=False, do_normalize=False
        )
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    ours = prepare(TAKEN[kind], "pad", FACTS)
    assert np.array_equal(ours, np.moveaxis(theirs, 0, -1))
    if kind.startswith(("animated", "TIFF")) and "GIF" not in kind:
        assert np.array_equal(np.asarray(decode(TAKEN[kind])), NOISE)


def many_scans(mode: str, between: bytes = b"") -> bytes:
    """A JPEG whose last scan is repeated: each is passed over all its pixels."""
    whole = encoded(FIRST.convert(mode), "JPEG", progressive=True)
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + (between + whole[last:-2]) * 5000 + b"\xff\xd9"


def broken_pixels() -> bytes:
    png = bytearray(encoded(FIRST, "PNG"))
    png[60] ^= 1
    return bytes(png)


JPEG, PNG = encoded(FIRST, "JPEG"), encoded(FIRST, "PNG")
EMPTY = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 58, 0, 0, 54, 40, 9, 0, 1, 24, 0, 4, 0, 0, 0, 0)

REFUSED = {
    "zero bytes": (b"", "is none of"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "is none of"),
    "PostScript": (encoded(FIRST, "EPS"), "is none of"),
    "an HTML page": (b"<!doctype html><title>404</title>", "is none of"),
    "an icon": (encoded(FIRST, "ICO"), "is none of"),
    "no height": (EMPTY, "is none of|at least one"),
    "half a JPEG": (JPEG[:-60], "truncated"),
    "half the header of a JPEG": (JPEG[:300], "Truncated|truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "half a WebP": (encoded(FIRST, "WEBP")[:200], "cannot decode"),
    "half a GIF": (encoded(FIRST, "GIF")[:-400], "truncated"),
    "a bit that turned": (broken_pixels(), "broken data stream|cannot decode"),
    "a header that lies": (PNG[:16] + struct.pack(">II", 60_000, 60_000) + PNG[24:], "cannot|most"),
    "a bomb in a text": (with_chunks(chunk(b"zTXt", b"a\0\0" + BOMB)), "too large"),
    "a bomb in a comment": (with_chunks(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), "too large"),
    "a bomb in a profile": (with_chunks(chunk(b"iCCP", b"a\0\0" + BOMB)), "too large"),
    "a thousand texts": (
        with_chunks(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 1000),
        "Too much memory",
    ),
    "scans without end": (many_scans("RGB"), r"50\d\d scans: expected at most 100"),
    "scans behind what is reserved": (
        many_scans("RGB", b"\xff\x02\xff\x00"),
        r"50\d\d scans: expected at most 100",
    ),
    "scans of four colours": (many_scans("CMYK"), r"50\d\d scans: expected at most 100"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_sound_picture_is_refused_soon(kind):
    content, why = REFUSED[kind]
    begun = time.process_time()
    for use in (decode, lambda it: prepare(it, "pad", FACTS), lambda it: fit(it, 28, "pad")):
        with pytest.raises(ImageError, match=why) as error:
            use(content)
        assert error.value.kind == "image" and "0x" not in str(error.value)
    assert time.process_time() - begun < 5


def test_a_thin_line_is_refused_where_it_cannot_be_made_square():
    line = encoded(Image.new("RGB", (1, 20_000)), "PNG")
    with pytest.raises(ImageError, match=r"20000 x 20000 pixels.*cut it"):
        prepare(line, "pad", FACTS)
    assert prepare(line, "crop", FACTS).shape == (28, 28, 3)
    assert prepare(line, "stretch", FACTS).shape == (28, 28, 3)


def test_no_reader_that_runs_a_program_is_asked(monkeypatch):
    """Pillow gives PostScript to Ghostscript, which has run foreign code more than once."""
    from PIL import EpsImagePlugin

    def never(*_, **__):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    with pytest.raises(ImageError, match="is none of"):
        decode(encoded(FIRST, "EPS"))
    with pytest.raises(ImageError, match="is none of"):
        size_of(encoded(FIRST, "EPS"))
    Image.init()
    assert set(image.FORMS) <= set(Image.OPEN)
