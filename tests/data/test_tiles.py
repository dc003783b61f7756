"""Pictures of any resolution, against LLaVA-NeXT of transformers: positions and pixels."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import small_set
import torch
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from astrollava_jax.batch import NEWLINE, ImageFacts
from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.image import ImageError, fit, prepare, size_of
from astrollava_jax.data.lengths import measure
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Pipeline
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.data.tiles import choose_canvas, layout, layout_of, prepare_tiles

NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""The canvases of LLaVA-NeXT 1.6."""


def facts(size: int, patch: int, grid=None) -> ImageFacts:
    tokens = (size // patch) ** 2
    return ImageFacts(size, patch, tokens, (9, 9, 9), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), grid)


CLIP_336 = facts(336, 14, NEXT)
SMALL = facts(28, 14, ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)))


def picture(height: int, width: int, form: str = "PNG", colours: str = "RGB") -> bytes:
    noise = np.random.default_rng(7 * height + width).integers(0, 256, (height, width, 3))
    content = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).convert(colours).save(content, form)
    return content.getvalue()


# Positions


@pytest.mark.parametrize(
    "size, canvas, lines, count",
    [
        ((336, 336), (336, 672), (24, 24), 1176),
        ((480, 640), (672, 672), (36, 48), 2340),
        ((768, 1024), (672, 672), (36, 48), 2340),
        ((1024, 1024), (672, 672), (48, 48), 2928),
        ((600, 1600), (336, 1008), (24, 64), 2136),
        ((1600, 600), (1008, 336), (64, 24), 2176),
        ((300, 2000), (336, 1008), (10, 72), 1306),
        ((2000, 300), (1008, 336), (72, 10), 1368),
        ((1080, 1920), (672, 672), (28, 48), 1948),
        ((1, 2000), (336, 672), (0, 48), 576),  # a line thinner than a patch: the base alone
    ],
)
def test_positions_of_llava_next(size, canvas, lines, count):
    found = layout(size, CLIP_336)
    assert choose_canvas(size, NEXT) == canvas
    assert found.tiles == 1 + canvas[0] * canvas[1] // 336**2
    assert found.features[:576].tolist() == list(range(576))
    assert np.count_nonzero(found.features == NEWLINE) == lines[0]
    assert len(found.features) == count == 576 + lines[0] * lines[1] + lines[0]


def test_the_picture_of_the_module():
    found = layout((6, 10), facts(4, 2, ((4, 8),)))
    assert found.features.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -2, 6, 7, 10, 11, -2]


@pytest.mark.parametrize("of", [CLIP_336, SMALL], ids=["336", "28"])
def test_positions_equal_those_of_transformers(of):
    """Theirs, run on features that say their own number; the newline says -2."""
    grid = [list(canvas) for canvas in of.grid]
    vision = SimpleNamespace(image_size=of.size, patch_size=of.patch)
    config = SimpleNamespace(image_grid_pinpoints=grid, vision_config=vision)
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in np.exp(rng.uniform(0, 7.6, (300, 2))).astype(int).tolist()]
    sizes += [(side, side) for side in range(1, 40)] + list(of.grid)
    for size in sizes:
        found = layout(size, of)
        assert found.tiles == image_size_to_num_patches(size, grid, of.size)
        canvas = choose_canvas(size, of.grid)
        shape = tuple(side // of.size for side in canvas)
        assert shape == get_anyres_image_grid_shape(size, grid, of.size)
        numbers = torch.arange(found.tiles * of.tokens, dtype=torch.float64)
        (theirs,), lengths = LlavaNextModel.pack_image_features(
            SimpleNamespace(config=config),  # pyright: ignore
            [numbers.reshape(found.tiles, of.tokens, 1)],
            [size],
            "default",
            torch.tensor([float(NEWLINE)], dtype=torch.float64),
        )
        assert lengths.tolist() == [len(found.features)], size
        assert np.array_equal(found.features, theirs[:, 0].numpy()), size


# Pixels

SIZES = [(1, 1), (28, 28), (29, 27), (48, 64), (65, 47), (1, 300), (300, 3), (77, 333), (200, 20)]


@pytest.mark.parametrize("form, colours", [("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "RGB")])
def test_pixels_equal_those_of_transformers(form, colours):
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[list(canvas) for canvas in SMALL.grid], do_rescale=False,
        do_normalize=False,
    )  # fmt: skip
    for size in SIZES:
        encoded = picture(*size, form, colours)
        shown = Image.open(io.BytesIO(encoded))
        theirs = processor(shown, return_tensors="np")["pixel_values"][0]
        ours = prepare_tiles(encoded, "anyres", SMALL)
        assert ours.dtype == np.uint8 and len(ours) == layout(size, SMALL).tiles
        assert np.array_equal(ours, theirs.transpose(0, 2, 3, 1)), size


def test_beside_the_picture_the_canvas_is_black():
    white = np.full((10, 10, 3), 255, np.uint8)
    content = io.BytesIO()
    Image.fromarray(white).save(content, "PNG")
    base, left, right = prepare_tiles(content.getvalue(), "anyres", facts(4, 2, ((4, 8),)))
    assert (base == 255).all()
    assert (left[:, 2:] == 255).all() and not left[:, :2].any()
    assert (right[:, :2] == 255).all() and not right[:, 2:].any()


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_other_modes_have_one_tile(mode):
    encoded = picture(48, 64)
    assert np.array_equal(prepare_tiles(encoded, mode, SMALL), prepare(encoded, mode, SMALL)[None])
    found = layout_of(encoded, mode, SMALL)
    assert found.tiles == 1 and found.features.tolist() == [0, 1, 2, 3]


def test_a_size_is_read_from_the_header_alone():
    assert size_of(picture(48, 64, "WEBP")) == (48, 64)
    for form in ("PNG", "JPEG", "GIF"):
        encoded = picture(48, 64, form)
        assert size_of(encoded) == size_of(encoded[: len(encoded) // 2]) == (48, 64)
    with pytest.raises(ImageError, match="header of this picture of 3 bytes"):
        size_of(b"abc")


def test_stored_pictures_are_no_longer_than_asked():
    stored = fit(picture(100, 300), 84, "anyres")
    assert size_of(stored) == (28, 84)
    small = picture(20, 84)
    assert fit(small, 84, "anyres") is small


# Records

FACTS = facts(4, 2, ((4, 8), (8, 4), (8, 8)))
"""A picture of 10 x 20 takes 4 + 2 x 4 + 2 = 14 positions and 3 tiles; one of 20 x 10, 4 x 3 + 4
and so 16; one of 20 x 20, 4 + 4 x 4 + 4 = 24 and 5 tiles."""

WIDE, HIGH, LARGE = picture(10, 20), picture(20, 10), picture(20, 20)


def reader(folder, *examples: Example, template="plain", length=64, of=FACTS) -> Reader:
    write_set(folder / "set", examples, name="sky", split="train")
    parts = [Part(TFRecordSource(folder / "set"), template, "anyres")]
    return Reader(parts, small_set.tokenizer(folder), of, length)


def star(name: str, *images: bytes, turns: tuple[Turn, ...] = ()) -> Example:
    return Example(id=name, images=images, turns=turns, caption="" if turns else "a star")


def whole_run(found: Reader, folder, **options):
    """The lengths, and the only step of a run in the order of the records."""
    lengths = measure(found, folder / "plan", **options)
    mixture = Mixture(
        [part.source for part in found.parts], [1.0] * len(found.parts), shuffle=False
    )
    batch = BatchConfig(samples=len(found), length=found.length)
    plan = RunPlan(mixture, lengths, batch, epochs=1)
    with Pipeline(plan, found).batches() as batches:
        (step,) = batches
    return lengths, plan, step


def assert_sees(batch, row: int, start: int, image: int, encoded: bytes, of=FACTS) -> int:
    """Asserts that a picture stands there, tiles from `image` on; gives the position after it."""
    expected, tiles = layout_of(encoded, "anyres", of), prepare_tiles(encoded, "anyres", of)
    stop = start + len(expected.features)
    found = batch.feature_index[row, start:stop]
    assert np.array_equal(found == NEWLINE, expected.features == NEWLINE)
    seen = expected.features >= 0
    assert np.array_equal(found[seen], expected.features[seen] + image * of.tokens)
    assert np.array_equal(batch.images[row, image : image + len(tiles)], tiles)
    return stop


def test_pictures_of_any_shape_and_text_share_a_row(tmp_path):
    found = reader(
        tmp_path, star("wide", WIDE), star("words"), star("high", HIGH), star("two", WIDE, HIGH),
        length=100,
    )  # fmt: skip
    lengths, plan, step = whole_run(found, tmp_path)
    assert lengths.tokens.tolist() == [1 + 14 + 2, 1 + 2, 1 + 16 + 2, 1 + 14 + 16 + 2]
    assert lengths.images.tolist() == [3, 0, 3, 6] and lengths.learned.tolist() == [2] * 4
    assert (plan.rows, plan.shape.images) == (1, 12) and not step.faults
    place = assert_sees(step.batch, 0, 1, 0, WIDE)
    assert step.batch.feature_index[0, place : place + 6].tolist() == [-1] * 6
    place = assert_sees(step.batch, 0, place + 6, 3, HIGH)
    place = assert_sees(step.batch, 0, place + 3, 6, WIDE)
    assert_sees(step.batch, 0, place, 9, HIGH)


def test_pictures_stand_where_their_turns_place_them(tmp_path):
    turns = (Turn("human", "<image> a star"), Turn("assistant", "two"))
    turns += (Turn("human", "far <image> <image>"), Turn("assistant", "old"))
    found = reader(
        tmp_path, star("three", HIGH, WIDE, HIGH, turns=turns), template="llama_2", length=400
    )
    _, _, step = whole_run(found, tmp_path)
    starts = np.flatnonzero(
        (step.batch.feature_index[0] >= 0) & (step.batch.feature_index[0] % 12 == 0)
    )
    assert len(starts) == 3 and starts[1] > starts[0] + 16
    for start, image, encoded in zip(starts, (0, 3, 6), (HIGH, WIDE, HIGH)):
        assert_sees(step.batch, 0, start, image, encoded)


def test_tiled_and_padded_pictures_mix(tmp_path):
    write_set(tmp_path / "set", [star("wide", WIDE)], name="sky", split="train")
    source = TFRecordSource(tmp_path / "set")
    parts = [Part(source, "plain", "pad"), Part(source, "plain", "anyres")]
    mixed = Reader(parts, small_set.tokenizer(tmp_path), FACTS, 64)
    lengths, plan, step = whole_run(mixed, tmp_path)
    assert lengths.tokens.tolist() == [1 + 4 + 2, 1 + 14 + 2]
    assert lengths.images.tolist() == [1, 3] and plan.shape.images == 4
    assert step.batch.feature_index[0, 1:5].tolist() == [0, 1, 2, 3]
    assert np.array_equal(step.batch.images[0, 0], prepare(WIDE, "pad", FACTS))
    assert_sees(step.batch, 0, 8, 1, WIDE)


def test_a_cut_is_before_the_picture_that_lies_across_it(tmp_path):
    found = reader(tmp_path, star("two", WIDE, LARGE), length=32)
    words = found.words(0, found.read(0))
    assert (len(words.tokens), words.whole) == (1 + 14, 1 + 14 + 24 + 2)
    assert (words.num_pictures, words.num_images) == (1, 3)


def test_a_picture_that_fits_into_no_row_is_told_with_its_record(tmp_path):
    found = reader(tmp_path, star("wide", WIDE), star("large", LARGE), length=20)
    with pytest.raises(ValueError, match=r"'large': its image 0 takes 24 .* at least 26"):
        measure(found, tmp_path / "plan")
    lengths, _, step = whole_run(found, tmp_path, allow_unlearned=1)
    assert lengths.tokens.tolist() == [17, 0] and not lengths.unreadable
    assert [fault.record for fault in lengths.faults] == ["large"]
    assert step.records == ["wide", "large"] and not step.faults


def test_a_picture_without_a_header_is_a_damaged_record(tmp_path):
    found = reader(tmp_path, star("wide", WIDE), star("bad", b"no picture"))
    with pytest.raises(ValueError, match=r"1 of 2 records cannot be read(.|\n)*header of this"):
        measure(found, tmp_path / "plan", allow_unreadable=0.1)
    lengths, _, step = whole_run(found, tmp_path)
    (fault,) = lengths.unreadable
    assert fault.record == "bad" and lengths.tokens.tolist() == [17, 0]
    assert measure(found, tmp_path / "plan").unreadable == (fault,)
    assert [fault.record for fault in step.faults] == ["bad"]


def test_a_picture_that_cannot_be_decoded_keeps_its_place(tmp_path):
    found = reader(tmp_path, star("cut", WIDE[: len(WIDE) // 2]), star("wide", WIDE))
    _, _, step = whole_run(found, tmp_path)
    assert [fault.record for fault in step.faults] == ["cut"]
    assert not step.batch.images[0, :3].any() and set(step.batch.learned_sample[0]) == {-1, 1}
    assert_sees(step.batch, 0, 18, 3, WIDE)


def test_lengths_are_measured_again_for_another_grid(tmp_path):
    found = reader(tmp_path, star("large", LARGE))
    assert measure(found, tmp_path / "plan").tokens.tolist() == [1 + 24 + 2]
    other = Reader(found.parts, found.tokenizer, facts(4, 2, ((4, 8),)), found.length)
    assert measure(other, tmp_path / "plan").tokens.tolist() == [1 + 4 + 2 * 2 + 2 + 2]


def test_a_model_without_a_grid_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"anyres .* init\.grid"):
        reader(tmp_path, star("wide", WIDE), of=facts(4, 2))
