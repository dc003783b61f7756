import dataclasses
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from astrollava_jax.quickstart.pictures import draw
from astrollava_jax.quickstart.sky import COLOURS, KINDS, SIZES, Purpose, scene


def _first(**wanted):
    """The first scene of sky 1 with these values."""
    scenes = (scene(1, index) for index in range(10_000))
    return next(s for s in scenes if all(getattr(s, name) == v for name, v in wanted.items()))


def _light(picture):
    """Brightness over the empty sky, in levels of grey."""
    grey = picture.astype(float).mean(axis=2)
    return np.maximum(grey - np.median(grey) - 15, 0)


def test_a_scene_depends_on_seed_and_index_alone():
    forwards = [scene(7, index) for index in range(20)]
    backwards = [scene(7, index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert scene(8, 3) != dataclasses.replace(scene(7, 3), seed=8)
    assert len({s.bodies for s in forwards if s.bodies}) == len([s for s in forwards if s.bodies])


def test_another_process_draws_the_same_bytes():
    program = (
        "import sys; from astrollava_jax.quickstart import pictures, sky;"
        "[sys.stdout.buffer.write(pictures.draw(sky.scene(7, i)).tobytes()) for i in range(8)]"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"".join(draw(scene(7, index)).tobytes() for index in range(8))


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_a_negative_seed_or_index_is_refused(seed, index):
    with pytest.raises(ValueError, match=f"seed {seed}, index {index}"):
        scene(seed, index)


def test_the_mix_makes_majority_answers_poor():
    scenes = [scene(2, index) for index in range(3000)]

    def shares(name):
        told = Counter(getattr(s, name) for s in scenes if getattr(s, name) is not None)
        return {value: number / told.total() for value, number in told.items()}

    for kind, facts in KINDS.items():
        assert shares("kind")[kind] == pytest.approx(facts.share, abs=0.02)
    for colour in COLOURS:
        assert shares("colour")[colour] == pytest.approx(0.2, abs=0.03)
    assert shares("arms") == pytest.approx({2: 0.42, 3: 0.33, 4: 0.25}, abs=0.05)
    assert max(shares("count").values()) == pytest.approx(0.58, abs=0.03)
    assert sum(facts.share for facts in KINDS.values()) == pytest.approx(1)


def test_only_one_body_alone_is_told_about_in_detail():
    for index in range(500):
        s = scene(3, index)
        alone = len(s.bodies) == 1
        assert (s.size is not None) == (s.position is not None) == alone
        assert (s.arms is not None) == (alone and s.kind == "spiral")
        assert (s.tilt is not None) == (alone and s.kind == "edge-on")
        assert (s.count is None) == (s.kind == "field")
        assert s.count == 2 or s.kind != "merging"


def test_bodies_lie_as_their_words_say():
    for index in range(500):
        s = scene(4, index)
        if s.size and s.position:
            body = s.bodies[0]
            lowest, highest = SIZES[s.size]
            assert lowest <= body.radius <= highest
            if s.position == "middle":
                assert max(abs(body.x), abs(body.y)) < 0.05
            else:
                offset = {"left": -body.x, "right": body.x, "top": -body.y, "bottom": body.y}
                assert offset[s.position] == max(offset.values()) > 0.08
        if s.tilt == "flat":
            assert abs(math.sin(s.bodies[0].angle)) < 0.2
        if s.tilt == "upright":
            assert abs(math.cos(s.bodies[0].angle)) < 0.2


def test_bodies_keep_apart():
    for index in range(500):
        bodies = scene(5, index).bodies
        for one in bodies:
            for other in bodies:
                distance = math.dist((one.x, one.y), (other.x, other.y))
                assert one is other or distance > one.radius + other.radius


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 64, 100])
def test_every_kind_is_drawn_at_any_size(kind, size):
    picture = draw(_first(kind=kind), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert _light(picture).max() > 50  # something shines
    assert np.median(picture) < 60  # on a dark sky


def test_a_larger_picture_shows_the_same_scene():
    s = _first(kind="ring", size="large", foreground_stars=0)
    small, large = _light(draw(s, 64)), _light(draw(s, 192))
    averaged = large.reshape(64, 3, 64, 3).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), averaged.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("position", ["left", "right", "top", "bottom"])
def test_the_light_lies_where_the_scene_says(position):
    s = _first(kind="elliptical", position=position, foreground_stars=0)
    light = _light(draw(s))
    place = (np.arange(64) + 0.5) / 64 - 0.5
    x = (light.sum(axis=0) * place).sum() / light.sum()
    y = (light.sum(axis=1) * place).sum() / light.sum()
    assert (x, y) == pytest.approx((s.bodies[0].x, s.bodies[0].y), abs=0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_light_has_the_colour_that_the_scene_says(colour):
    s = _first(kind="elliptical", colour=colour, foreground_stars=0)
    picture = draw(s).astype(float)
    bright = picture[_light(picture) > 30].mean(axis=0)
    red, green, blue = bright / bright.max()
    expected = {
        "red": red == 1 and green < 0.8 and blue < 0.8,
        "yellow": min(red, green) > 0.85 and blue < 0.75,
        "green": green == 1 and red < 0.8 and blue < 0.8,
        "blue": blue == 1 and green < 0.9 and red < 0.75,
        "white": min(red, green, blue) > 0.85,
    }
    assert expected[colour]


@pytest.mark.parametrize("arms", [2, 3, 4])
def test_arms_can_be_counted_in_the_picture(arms):
    """Around a spiral's heart, the strongest wave has as many crests as there are arms."""
    s = _first(arms=arms, size="large", position="middle", foreground_stars=0)
    body = s.bodies[0]
    light = draw(s, 192).astype(float).mean(axis=2)
    angle = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    u, v = np.cos(angle), np.sin(angle) * body.axis_ratio
    waves = np.zeros(8)
    for r in np.linspace(0.4, 0.9, 11) * body.radius:
        x = body.x + r * (u * math.cos(body.angle) - v * math.sin(body.angle))
        y = body.y + r * (u * math.sin(body.angle) + v * math.cos(body.angle))
        column, row = ((x + 0.5) * 192).astype(int), ((y + 0.5) * 192).astype(int)
        waves += np.abs(np.fft.rfft(light[row, column]))[:8]
    assert np.argmax(waves[1:]) + 1 == arms


def test_each_purpose_has_its_own_randomness():
    drawn = {scene(0, 0).generator(purpose).random() for purpose in Purpose}
    assert len(drawn) == len(Purpose)
