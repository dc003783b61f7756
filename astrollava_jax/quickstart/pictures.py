"""Draws scenes of the simulated sky as pictures, with NumPy alone.

Light is added up in two layers, one of the scene's colour and one white (foreground stars and the
stars that light planetary nebulae), blurred, coloured, made noisy and stretched. Formulas work in a
body's own frame: `u` along its long axis and `v` across it, in units of its radius.
"""

import io
import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from astrollava_jax.quickstart.sky import Body, Kind, Purpose, Scene

Plane = Float[np.ndarray, "h w"]
Positions = Float[np.ndarray, "n"]
Light = Callable[
    [Body, Plane, Plane], Plane
]  # body, u, v -> brightness; a galaxy's heart is near 1

_REFERENCE_SIZE = 64  # pixels: the size at which a scene's point spread is stated
_STAR_FLUX = 7.5e-4  # of a star as bright as a galaxy's heart, in brightness x squared sides
_SKY = 0.03  # brightness of the empty sky
_PHOTON_NOISE = 0.0015  # variance per unit of brightness
_KNEE = 0.1  # the brightness at which the stretch turns from linear to logarithmic


class Stars(NamedTuple):
    """Points of light: places from the middle in sides, and brightness beside a galaxy's heart."""

    x: Positions
    y: Positions
    brightness: Positions


def draw(scene: Scene, size: int = _REFERENCE_SIZE) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The picture of a scene. A larger one is as sharp as a better telescope would make it."""
    random = scene.generator(Purpose.DETAILS)
    tinted = sum((_surface(scene.kind, body, size) for body in scene.bodies), _dark(size))
    tinted += _deposit(_tinted_stars(scene, random), size)
    white = _deposit(_white_stars(scene, random), size)
    sigma = scene.point_spread * math.sqrt(size / _REFERENCE_SIZE)
    tinted, white = _blur(np.stack([tinted, white]), sigma)
    tint = np.asarray(scene.tint, np.float32)
    return _expose(tinted[..., None] * tint + white[..., None], scene)


def encode_png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as a PNG file."""
    target = io.BytesIO()
    # Noise repeats nothing: to look for repetitions costs time and saves no byte.
    Image.fromarray(picture).save(target, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)
    return target.getvalue()


# --- Bodies with a surface ---


def _spiral(body: Body, u: Plane, v: Plane) -> Plane:
    r, angle = _polar(u, v / body.axis_ratio)
    pitch = math.radians(23 + 5 * body.variety)
    winding = body.handed * angle - np.log(r) / math.tan(pitch)
    ridge = ((1 + np.cos(body.arms * winding)) / 2) ** 2.2
    disk = np.exp(-r) * _inside(r, 1.0) * (0.07 + ridge)
    return 1.3 * disk + 0.9 * _sersic(r, 1.0, 0.12)


def _elliptical(body: Body, u: Plane, v: Plane) -> Plane:
    r, _ = _polar(u, v / body.axis_ratio)
    return np.minimum(0.16 * _sersic(r, 2 + 2 * body.variety, 0.5), 2.0)


def _edge_on(body: Body, u: Plane, v: Plane) -> Plane:
    height = np.minimum(np.abs(v) / (0.07 + 0.04 * body.variety), 20)  # no overflow far away
    dust = 1 - 0.6 * np.exp(-((height / 0.4) ** 2)) * (np.abs(u) < 0.8)
    disk = np.exp(-np.abs(u) / 0.5) * _inside(np.abs(u), 1.15) / np.cosh(height) ** 2
    bulge = np.exp(-((u / 0.16) ** 2) - (v / 0.13) ** 2)
    return (1.1 * disk + 0.6 * bulge) * dust


def _merging(body: Body, u: Plane, v: Plane) -> Plane:
    light = np.zeros_like(u)
    for side in (-1, 1):
        r, _ = _polar(u - side * 0.36, v / 0.8)
        light += np.minimum(0.3 * _sersic(r, 1.4, 0.22), 1.5)
        r, angle = _polar(side * u, side * v)
        along = (body.handed * angle) % (2 * math.pi)  # from this core on, around the middle
        light += 0.45 * np.exp(-(((r - 0.38 - 0.2 * along) / 0.09) ** 2) - along / 1.6)
    return light


def _planetary(body: Body, u: Plane, v: Plane) -> Plane:
    r, angle = _polar(u, v / body.axis_ratio)
    outer, inner = 0.9, 0.7 + 0.1 * body.variety
    shell = np.sqrt(np.maximum(outer**2 - r**2, 0)) - np.sqrt(np.maximum(inner**2 - r**2, 0))
    return 1.1 * shell * (1 + 0.3 * np.cos(2 * angle))


def _ring(body: Body, u: Plane, v: Plane) -> Plane:
    r, angle = _polar(u, v / body.axis_ratio)
    knots = 1 + 0.4 * np.cos(7 * angle + 2 * math.pi * body.variety)
    return 0.55 * knots * np.exp(-(((r - 0.82) / 0.11) ** 2)) + 0.8 * _sersic(r, 1.0, 0.13)


_SURFACES: dict[Kind, Light] = {
    "spiral": _spiral,
    "elliptical": _elliptical,
    "edge-on": _edge_on,
    "merging": _merging,
    "planetary": _planetary,
    "ring": _ring,
}


def _surface(kind: Kind, body: Body, size: int) -> Plane:
    """The light of one body on the picture's grid; none where a body is made of stars."""
    if kind not in _SURFACES:
        return _dark(size)
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = (line - body.x) / body.radius, (line[:, None] - body.y) / body.radius
    cos, sin = math.cos(body.angle), math.sin(body.angle)
    return _SURFACES[kind](body, x * cos + y * sin, y * cos - x * sin)


def _polar(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Distance (never zero, for the logarithm) and direction."""
    return np.sqrt(u * u + v * v + np.float32(1e-6)), np.arctan2(v, u)


def _inside(r: Plane, edge: float) -> Plane:
    """One within the edge, falling to zero over the next tenth of a radius."""
    return np.clip((edge - r) * 10 + 1, 0, 1)


def _sersic(r: Plane, index: float, effective_radius: float) -> Plane:
    """A galaxy's brightness after Sersic, one at the radius that holds half of the light."""
    return np.exp((1 / 3 - 2 * index) * ((r / effective_radius) ** (1 / index) - 1))


# --- Stars ---


def _tinted_stars(scene: Scene, random: np.random.Generator) -> Stars:
    """The stars of clusters, or those of a whole field."""
    if scene.kind == "cluster":
        return _together([_cluster(body, random) for body in scene.bodies])
    number = int(random.integers(35, 71)) if scene.kind == "field" else 0
    return _scatter(number, random, faintest=0.15)


def _white_stars(scene: Scene, random: np.random.Generator) -> Stars:
    """Foreground stars, and the one in the middle of each planetary nebula."""
    foreground = _scatter(scene.foreground_stars, random, faintest=0.2)
    bodies = scene.bodies if scene.kind == "planetary" else ()
    x, y = (np.array([getattr(body, axis) for body in bodies]) for axis in "xy")
    return _together([foreground, Stars(x, y, np.full(len(bodies), 1.2))])


def _cluster(body: Body, random: np.random.Generator) -> Stars:
    """Stars after Plummer, whose number grows with the cluster's variety."""
    number = 60 + int(50 * body.variety)
    share = random.uniform(0, 0.88, number)  # of the cluster's mass nearer to its heart
    r = 0.38 * body.radius * np.sqrt(share / (1 - share))
    angle = random.uniform(0, 2 * math.pi, number)
    x, y = body.x + r * np.cos(angle), body.y + r * np.sin(angle) * body.axis_ratio
    brightness = _brightness(number, random, faintest=0.1) * body.radius / 0.3
    return Stars(x, y, brightness)


def _scatter(number: int, random: np.random.Generator, faintest: float) -> Stars:
    """Stars anywhere in the picture."""
    x, y = random.uniform(-0.5, 0.5, (2, number))
    return Stars(x, y, _brightness(number, random, faintest))


def _brightness(number: int, random: np.random.Generator, faintest: float) -> Positions:
    """Many faint stars and few bright ones: a power law, cut at twice a galaxy's heart."""
    return np.minimum(faintest * (1 - random.random(number)) ** (-1 / 1.2), 2.0)


def _together(groups: list[Stars]) -> Stars:
    return Stars(*(np.concatenate(column) for column in zip(*groups)))


def _deposit(stars: Stars, size: int) -> Plane:
    """The light of stars, each shared among the four pixels around it."""
    light = np.zeros((size + 2) ** 2)
    column, row = (stars.x + 0.5) * size + 0.5, (stars.y + 0.5) * size + 0.5
    seen = (column > 0) & (column < size + 1) & (row > 0) & (row < size + 1)
    column, row, flux = column[seen], row[seen], stars.brightness[seen] * _STAR_FLUX * size**2
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    across, down = column - left, row - top
    for step_x, weight_x in ((0, 1 - across), (1, across)):
        for step_y, weight_y in ((0, 1 - down), (1, down)):
            pixel = (top + step_y) * (size + 2) + left + step_x
            light += np.bincount(pixel, flux * weight_x * weight_y, minlength=light.size)
    return light.reshape(size + 2, size + 2)[1:-1, 1:-1].astype(np.float32)


# --- The telescope ---


def _dark(size: int) -> Plane:
    return np.zeros((size, size), np.float32)


def _blur(layers: Float[np.ndarray, "l h w"], sigma: float) -> Float[np.ndarray, "l h w"]:
    """Spreads every point over a Gaussian of `sigma` pixels; edges are repeated outwards."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    height, width = layers.shape[1:]
    padded = np.pad(layers, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    rows = [weight * padded[:, i : i + height] for i, weight in enumerate(weights)]
    rows = np.sum(rows, axis=0)
    return np.sum([weight * rows[:, :, i : i + width] for i, weight in enumerate(weights)], axis=0)


def _expose(light: Float[np.ndarray, "h w 3"], scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    """Adds the sky and its noise, and stretches brightness so that faint and bright both show."""
    light = light + np.float32(_SKY)
    # Photons are counted in such numbers that a Gaussian stands well for Poisson's law.
    spread = np.sqrt(light * np.float32(_PHOTON_NOISE) + np.float32(scene.noise**2))
    noise = scene.generator(Purpose.NOISE).standard_normal(light.shape, dtype=np.float32)
    stretched = np.arcsinh((light + spread * noise) / np.float32(_KNEE)) / math.asinh(1 / _KNEE)
    return np.clip(np.round(stretched * 255), 0, 255).astype(np.uint8)
