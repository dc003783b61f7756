import dataclasses

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data.image import prepare
from astrollava_jax.inference.prompt import (
    Prompt,
    encoded,
    make_prompt,
    pictures_per_prompt,
    to_batch,
)

FACTS = ImageFacts(
    size=4,
    patch=2,
    tokens=4,
    pad_color=(122, 116, 104),
    pixel_mean=(0.48145466, 0.4578275, 0.40821073),
    pixel_std=(0.27, 0.26, 0.28),
)
IMAGE = 9


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_each_marker_takes_as_many_positions_as_there_are_features():
    prompt = make_prompt([1, IMAGE, 5, IMAGE], [noise(4, 4, 3), noise(4, 4)], IMAGE, "pad", FACTS)
    assert prompt.tokens.tolist() == [1, 9, 9, 9, 9, 5, 9, 9, 9, 9]
    assert prompt.feature_index.tolist() == [-1, 0, 1, 2, 3, -1, 4, 5, 6, 7]
    assert (prompt.images[0] == noise(4, 4, 3)).all()


def test_rows_are_right_padded_and_their_positions_go_on():
    short = make_prompt([1, 2], [], IMAGE, "pad", FACTS)
    seeing = make_prompt([1, IMAGE], [noise(4, 4, 3)], IMAGE, "pad", FACTS)
    batch = to_batch([short, seeing], rows=4, length=8, images=1, facts=FACTS)
    assert batch.segment_ids.sum(axis=1).tolist() == [2, 5, 0, 0]
    assert batch.positions.tolist() == [list(range(8))] * 4
    assert batch.tokens[:2].tolist() == [[1, 2, 0, 0, 0, 0, 0, 0], [1, 9, 9, 9, 9, 0, 0, 0]]
    assert batch.feature_index[1].tolist() == [-1, 0, 1, 2, 3, -1, -1, -1]
    assert (batch.images[1, 0] == noise(4, 4, 3)).all() and not batch.images[0].any()


def test_tiles_stand_where_their_picture_does():
    facts = dataclasses.replace(FACTS, grid=((4, 8), (8, 4)))
    wide = noise(4, 8, 3)
    prompt = make_prompt([1, IMAGE, 5], [wide], IMAGE, "anyres", facts)
    assert prompt.feature_index.tolist() == [
        -1, 0, 1, 2, 3, 4, 5, 8, 9, -2, 6, 7, 10, 11, -2, -1,
    ]  # fmt: skip
    assert len(prompt.images) == 3
    assert (np.concatenate(prompt.images[1:], axis=1) == wide).all()


def test_few_numbers_of_images_hold_everything():
    images = [noise(4, 4, 3)] * 50
    rooms = [
        Prompt(np.zeros(1, np.int32), np.zeros(1, np.int32), tuple(images[:count])).places
        for count in range(51)
    ]
    assert all(room >= count for count, room in enumerate(rooms))
    assert sorted(set(rooms)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_a_pil_image_of_any_mode_is_seen_as_transformers_sees_it(mode):
    image = Image.fromarray(noise(9, 6, 4) if "A" in mode else noise(9, 6, 3)).convert(mode)
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4}, do_pad=True,
        do_rescale=False, do_normalize=False,
    )  # fmt: skip
    expected = np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)
    assert (prepare(encoded(image), "pad", FACTS) == expected).all()


def test_sixteen_bits_stay_sixteen_bits_until_they_are_scaled():
    grey = np.array([[0, 257], [32896, 65535]], np.uint16)
    assert prepare(encoded(grey), "crop", ImageFacts(**{**vars(FACTS), "size": 2}))[
        ..., 0
    ].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (None, [[], []]),
        ([], [[], []]),
        (["a.png", None], [["a.png"], []]),
        ([["a.png", "b.png"], ()], [["a.png", "b.png"], []]),
    ],
)
def test_pictures_are_given_one_entry_per_prompt(images, expected):
    assert pictures_per_prompt(images, 2) == expected


def test_a_path_with_nothing_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        encoded(tmp_path / "gone.png")
