import io

import numpy as np
import pytest
from PIL import Image

from astrollava_jax.quickstart.examples import examples, scene_of
from astrollava_jax.quickstart.pictures import draw
from astrollava_jax.quickstart.sky import scene
from astrollava_jax.quickstart.words import caption, dialogue


def test_an_example_holds_its_scene():
    (made,) = examples(3, 1, start=5)
    shown = scene(3, 5)
    assert made.id == "sky-3-5"
    assert scene_of(made.id) == shown
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(made.images[0]))), draw(shown))
    assert (made.caption, made.turns) == (caption(shown), dialogue(shown))
    assert (made.source, made.license) == ("simulated sky", "CC0")


def test_workers_change_nothing():
    alone = list(examples(3, 130, size=16))
    assert list(examples(3, 130, size=16, workers=2)) == alone
    assert list(examples(3, 30, start=100, size=16)) == alone[100:]


@pytest.mark.parametrize("example_id", ["sky-3", "sea-3-5", "sky-3--5", "sky-3-5 "])
def test_another_id_is_refused(example_id):
    with pytest.raises(ValueError, match="expected an id like sky-0-12"):
        scene_of(example_id)
