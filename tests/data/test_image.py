"""Pixels, against the PIL-backed processors of transformers, bit for bit."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data import image
from astrollava_jax.data.image import ImageError, fit, normalize, prepare

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FACTS = ImageFacts(
    size=28, patch=14, tokens=4, pad_color=(122, 116, 104), pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD
)
SIZES = [(1, 1), (1, 2000), (2000, 3), (28, 28), (29, 27), (64, 48), (47, 65), (333, 77), (7, 12)]
MODES = ["RGB", "L", "1", "P", "PA", "LA", "RGBA", "CMYK"]


def _pixels(width: int, height: int, channels: int) -> np.ndarray:
    noise = np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, channels))
    return noise.astype(np.uint8)


def _picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """A noisy picture, some of it transparent where the mode allows it."""
    colour = Image.fromarray(_pixels(*size, 3))
    alpha = Image.fromarray(_pixels(*size, 1)[..., 0])
    if mode in ("RGBA", "LA"):
        converted = colour.convert(mode)
        converted.putalpha(alpha)
        return converted
    if mode == "PA":  # a palette with transparent entries, as PNG and GIF keep it
        palette = colour.quantize(16)
        palette.info["transparency"] = bytes(range(0, 256, 16))
        return palette
    if mode == "P":
        return colour.quantize(16)
    return colour.convert(mode)


def _encode(picture: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


def _reference(encoded: bytes, mode: str, *, normalised: bool = False) -> np.ndarray:
    side = FACTS.size
    options = dict(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_rescale=normalised,
        do_normalize=normalised,
    )
    if mode == "pad":
        processor = LlavaImageProcessorPil(do_pad=True, **options)
    else:
        processor = CLIPImageProcessorPil(**options)
    picture = Image.open(io.BytesIO(encoded))
    return np.moveaxis(processor(picture, return_tensors="np")["pixel_values"][0], 0, -1)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("colours", MODES)
def test_pixels_equal_the_processors(colours, mode):
    for size in SIZES:
        encoded = _encode(_picture(colours, size), "TIFF" if colours == "CMYK" else "PNG")
        assert np.array_equal(prepare(encoded, mode, FACTS), _reference(encoded, mode)), size


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_pixels_of_a_jpeg_equal_the_processors(colours, mode):
    for size in SIZES:
        for options in (
            {"subsampling": 0},
            {"subsampling": 1},
            {"subsampling": 2, "progressive": True},
            {"quality": 30},
            {"keep_rgb": True},
        ):
            encoded = _encode(_picture(colours, size), "JPEG", **options)
            assert np.array_equal(prepare(encoded, mode, FACTS), _reference(encoded, mode)), size


@pytest.mark.parametrize(
    "size", [(28, 28), (28, 21), (28, 20), (20, 28), (21, 28), (28, 1), (1, 28)]
)
def test_pixels_at_training_size_are_the_decoders_own(size):
    encoded = _encode(_picture("RGB", size), "JPEG")
    assert np.array_equal(prepare(encoded, "pad", FACTS), _reference(encoded, "pad"))


@pytest.mark.parametrize("size", [(28, 28), (28, 41), (40, 28), (41, 28), (28, 300)])
def test_pixels_cut_at_training_size_are_the_decoders_own(size):
    encoded = _encode(_picture("RGB", size), "JPEG")
    assert np.array_equal(prepare(encoded, "crop", FACTS), _reference(encoded, "crop"))


@pytest.mark.parametrize("size", [(28, 28), (28, 41), (40, 28)])
def test_stretched_pixels_are_those_of_a_png(size):
    encoded = _encode(_picture("RGB", size), "JPEG")
    as_png = _encode(Image.open(io.BytesIO(encoded)), "PNG")
    assert np.array_equal(*(prepare(kept, "stretch", FACTS) for kept in (encoded, as_png)))


def test_pictures_at_training_size_do_not_share_their_padding():
    encoded = _encode(_picture("RGB", (28, 20)), "JPEG")
    first, second = prepare(encoded, "pad", FACTS), prepare(encoded, "pad", FACTS)
    assert not np.shares_memory(first, second)


def test_ordinary_jpegs_are_decoded_by_the_fast_way():
    encoded = _encode(_picture("RGB", (64, 48)), "JPEG")
    pixels = image._decode_jpeg(encoded)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded))))
    assert image._decode_jpeg(_encode(_picture("CMYK", (64, 48)), "JPEG")) is None


@pytest.mark.parametrize("form", ["GIF", "WEBP", "BMP"])
def test_other_forms_are_decoded(form):
    encoded = _encode(_picture("RGB", (40, 30)), form)
    assert np.array_equal(prepare(encoded, "pad", FACTS), _reference(encoded, "pad"))


def test_of_an_animation_the_first_frame_is_taken():
    first, second = (Image.new("RGB", (28, 28), colour) for colour in ("red", "blue"))
    encoded = _encode(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(np.unique(prepare(encoded, "pad", FACTS), axis=1)[0], [[255, 0, 0]])


def test_orientation_is_ignored():
    picture = _picture("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    turned = _encode(picture, "JPEG", exif=exif)
    assert np.array_equal(
        prepare(turned, "pad", FACTS), prepare(_encode(picture, "JPEG"), "pad", FACTS)
    )


def test_padding_by_hand():
    facts = ImageFacts(4, 2, 4, (9, 8, 7), CLIP_MEAN, CLIP_STD)
    padded = prepare(_encode(Image.new("RGB", (4, 1), "white"), "PNG"), "pad", facts)
    assert (padded[1] == 255).all()  # three rows to fill: one above, two below
    assert (padded[[0, 2, 3]] == (9, 8, 7)).all()


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 1, 128, 129, 257, 32768, 65407, 65535]], np.uint16).repeat(8, axis=0)
    expected = np.array([0, 0, 0, 1, 1, 128, 255, 255])  # value / 257, rounded
    facts = ImageFacts(8, 4, 4, (0, 0, 0), CLIP_MEAN, CLIP_STD)
    for form in ("PNG", "TIFF", "PPM"):  # Pillow reads the last as 32-bit integers
        prepared = prepare(_encode(Image.fromarray(values), form), "pad", facts)
        assert np.array_equal(prepared, np.broadcast_to(expected[:, None], (8, 8, 3))), form


def test_wider_pixels_are_refused():
    for values in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32)):
        with pytest.raises(ImageError, match="at most 16 bits"):
            prepare(_encode(Image.fromarray(values), "TIFF"), "pad", FACTS)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_normalised_floats_are_the_processors(mode):
    encoded = _encode(_picture("RGB", (64, 48)), "PNG")
    ours = normalize(prepare(encoded, mode, FACTS), FACTS)
    assert ours.dtype == np.float32
    assert np.abs(ours - _reference(encoded, mode, normalised=True)).max() <= 1e-6


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_what_is_no_picture_is_named(form):
    whole = _encode(_picture("RGB", (64, 48)), form)
    for content in (b"", b"not a picture", whole[: len(whole) // 2], b"\xff\xd8\xff", whole[:20]):
        with pytest.raises(ImageError, match=f"picture of {len(content)} bytes"):
            prepare(content, "pad", FACTS)


def test_a_small_file_cannot_state_any_size():
    for side in (20_000, 60_000):  # Pillow warns of the first, and refuses the second
        with pytest.raises(ImageError, match=r"expected at most|DecompressionBomb"):
            prepare(_png_that_states(side, side), "pad", FACTS)


def test_a_long_picture_is_refused_before_it_fills_the_memory():
    encoded = _encode(Image.new("RGB", (1, 60_000)), "PNG")
    with pytest.raises(ImageError, match="60000 x 60000 pixels"):
        prepare(encoded, "pad", FACTS)
    facts = ImageFacts(336, 14, 576, (0, 0, 0), CLIP_MEAN, CLIP_STD)
    with pytest.raises(ImageError, match="336 x 20160000 pixels"):
        prepare(encoded, "crop", facts)


def _png_that_states(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "mode, size, stored",
    [
        ("pad", (100, 40), (28, 11)),
        ("pad", (3, 300), (1, 28)),
        ("crop", (100, 40), (70, 28)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_large_pictures_are_stored_smaller(form, mode, size, stored):
    shrunk = fit(_encode(_picture("RGB", size), form), FACTS.size, mode)
    with Image.open(io.BytesIO(shrunk)) as picture:
        assert (picture.size, picture.format, picture.mode) == (stored, form, "RGB")


def test_shrunk_pictures_look_the_same():
    smooth = Image.fromarray(_pixels(6, 6, 3)).resize((300, 300), Image.Resampling.BICUBIC)
    png, jpeg = _encode(smooth, "PNG"), _encode(smooth, "JPEG", quality=98)
    assert np.array_equal(*(prepare(kept, "pad", FACTS) for kept in (png, fit(png, 28, "pad"))))
    before, after = (
        prepare(kept, "pad", FACTS).astype(int) for kept in (jpeg, fit(jpeg, 28, "pad"))
    )
    assert np.abs(after - before).mean() < 2


def test_small_pictures_are_stored_as_they_are():
    for form in ("PNG", "JPEG"):
        encoded = _encode(_picture("RGB", (28, 20)), form)
        assert fit(encoded, FACTS.size, "pad") is encoded
    for form in ("WEBP", "GIF"):  # TFDS's image feature knows neither
        stored = fit(_encode(_picture("RGB", (28, 20)), form), FACTS.size, "pad")
        assert stored.startswith(b"\x89PNG")


def test_only_pictures_are_stored():
    with pytest.raises(ImageError):
        fit(b"not a picture", 28, "pad")
