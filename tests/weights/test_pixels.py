"""What a directory says of pictures: read as transformers does, or refused."""

import re

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from astrollava_jax.models.clip import MEAN, STD, ClipConfig
from astrollava_jax.quickstart import recipe
from astrollava_jax.weights import pixels
from astrollava_jax.weights.foreign_config import tower_of_original
from astrollava_jax.weights.pixels import Pixels

LLAVA_HF = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
"""Of llava-hf/llava-1.5-7b-hf."""

DO = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


def read_pixels(processor, side):
    """What is read of a file beside a CLIP of this side."""
    tower = ClipConfig(
        image_size=side, patch_size=14, embed_dim=8, mlp_dim=8, num_layers=1, num_heads=1
    )
    return pixels.read_pixels(processor, tower)


def without(*keys):
    return {key: value for key, value in LLAVA_HF.items() if key not in keys}


def theirs(config):
    """What transformers makes of a picture that is half black, half white."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, 30:] = 255
    made = CLIPImageProcessorPil(**config)(Image.fromarray(picture), return_tensors="np")
    return made["pixel_values"]


def test_what_llava_hf_says_is_read():
    expected = Pixels("crop", MEAN, STD)
    assert read_pixels(LLAVA_HF, 336) == expected
    assert read_pixels({}, 336) == expected  # there is no such file
    assert read_pixels(LLAVA_HF | {"do_pad": True}, 336).mode == "pad"
    other = {"image_mean": [0.5, 0.5, 0.25], "image_std": [1.0, 1.0, 2.0]}
    assert read_pixels(LLAVA_HF | other, 336) == Pixels("crop", (0.5, 0.5, 0.25), (1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    "config",
    [
        *(without(key) for key in (*DO, "rescale_factor", "resample", "image_mean", "image_std")),
        LLAVA_HF | {"size": 336, "crop_size": 336},
        LLAVA_HF | {"rescale_factor": 0.00392157},
    ],
)
def test_what_means_the_same_is_read_the_same(config):
    assert read_pixels(config, 336) == read_pixels(LLAVA_HF, 336)
    np.testing.assert_allclose(theirs(config), theirs(LLAVA_HF), rtol=1e-5)


def test_without_sizes_pictures_become_those_of_224():
    silent, told = without("size", "crop_size"), LLAVA_HF | {"size": 224, "crop_size": 224}
    assert np.array_equal(theirs(silent), theirs(told))
    assert read_pixels(silent, 224) == read_pixels(told, 224)
    with pytest.raises(ValueError, match=r"size: expected .* 336, found None\n  crop_size: .*None"):
        read_pixels(silent, 336)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        *(({key: False}, f"{key}: expected True, found False") for key in DO),
        ({"do_resize": None}, "do_resize: expected True, found None"),
        ({"resample": 2}, "resample: expected 3, found 2"),
        ({"use_square_size": True}, "use_square_size: expected False, found True"),
        (
            {"rescale_factor": 1 / 127.5},
            "rescale_factor: expected 1/255, found 0.00784313725490196",
        ),
        ({"size": {"shortest_edge": 384}}, "336} or 336, found {'shortest_edge': 384}"),
        ({"size": 384}, "size: expected {'shortest_edge': 336} or 336, found 384"),
        ({"size": {"height": 336, "width": 336}}, "336, found {'height': 336, 'width': 336}"),
        ({"size": {"shortest_edge": 336, "longest_edge": 400}}, "'longest_edge': 400}"),
        ({"crop_size": {"height": 336, "width": 224}}, "336, found {'height': 336, 'width': 224}"),
        ({"crop_size": 224}, "crop_size: expected {'height': 336, 'width': 336} or 336, found 224"),
    ],
    ids=str,
)
def test_what_gives_other_pixels_is_refused(changes, fault):
    assert not np.array_equal(theirs(LLAVA_HF | changes), theirs(LLAVA_HF))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json.*\n.*{re.escape(fault)}"):
        read_pixels(LLAVA_HF | changes, 336)


def test_all_that_gives_other_pixels_is_named_at_once():
    changes = {"do_resize": False, "do_normalize": False, "rescale_factor": 1.0, "crop_size": 224}
    with pytest.raises(ValueError) as error:
        read_pixels(LLAVA_HF | changes, 336)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(changes)


def test_what_the_quickstart_writes_is_read():
    assert read_pixels(recipe.image_processor(), recipe.IMAGE_SIZE).mode == "pad"


def test_a_tower_told_in_our_own_words_has_its_own_size():
    told = {
        "image_size": 336,
        "patch_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [1.0, 1.0, 1.0],
    }
    tower = tower_of_original({"mm_vision_config": told})
    assert (tower.image_size, tower.pixel_mean) == (336, (0.5, 0.5, 0.5))
