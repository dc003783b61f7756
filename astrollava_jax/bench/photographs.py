"""Pictures as a camera makes them, drawn from a seed: what a JPEG library is measured on.

Neither noise, which no JPEG can make small, nor flat colour, which it need not: discs of all sizes
that cover each other (dead leaves), with a texture over them whose power falls with frequency as
that of natural scenes does, and the noise of a sensor. At quality 85 they take some 1.8 bits per
pixel, as photographs do.

Source: Lee, Mumford and Huang, Occlusion models for natural images (2001).
"""

import io
import math

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from astrollava_jax import files

RATIOS = (4 / 3, 3 / 2, 1.0, 16 / 9, 3 / 4, 2 / 3)
"""Width over height."""
QUALITY = 85
"""With chroma at half resolution, as cameras and the web keep it."""

_DISCS = 700
_SMALLEST, _LARGEST = 1 / 25, 1 / 2  # their radii, of the shorter side
_CONTRAST, _COLOUR, _TEXTURE, _NOISE = 40, 14, 25, 2  # deviations, of 255
_FALL = 1.2  # of the texture's amplitude with frequency


def write(folder: files.Where, count: int, seed: int, megapixels: tuple[float, float]) -> list[str]:
    """Writes pictures with sizes and shapes of their own as JPEG files; returns their names."""
    names = [f"{number:05d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        rng = np.random.default_rng((seed, number))
        pixels, ratio = 1e6 * rng.uniform(*megapixels), rng.choice(RATIOS)
        width, height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        content = io.BytesIO()
        photograph(rng, width, height).save(content, "JPEG", quality=QUALITY, subsampling=2)
        files.write_bytes(files.join(folder, name), content.getvalue())
    return names


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One picture of this size."""
    light = rng.uniform(60, 170)
    pixels = np.asarray(_leaves(rng, width, height, light), np.float32)
    pixels = pixels + _TEXTURE * _texture(rng, width, height)[..., None]
    pixels = pixels + rng.normal(0, _NOISE, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _leaves(rng: np.random.Generator, width: int, height: int, light: float) -> Image.Image:
    """Discs over each other; there are as many of a size as its area leaves room for."""
    image = Image.new("RGB", (width, height), (round(light),) * 3)
    draw, side, share = ImageDraw.Draw(image), min(width, height), rng.random(_DISCS)
    small, large = side * _SMALLEST, side * _LARGEST
    radii = 1 / np.sqrt(share / small**2 + (1 - share) / large**2)
    x, y = rng.random(_DISCS) * width, rng.random(_DISCS) * height
    grey = rng.normal(light, _CONTRAST, _DISCS)
    tint = rng.normal(0, _COLOUR, (_DISCS, 2))
    colours = np.stack(
        [grey + tint[:, 0] + 0.3 * tint[:, 1], grey - 0.3 * tint[:, 0], grey - tint.sum(axis=1)],
        axis=1,
    ).clip(0, 255)
    boxes = np.stack([x - radii, y - radii, x + radii, y + radii], axis=1)
    for box, colour in zip(boxes.tolist(), colours.astype(int).tolist()):
        draw.ellipse(box, fill=tuple(colour))
    return image


def _texture(rng: np.random.Generator, width: int, height: int) -> Float32[np.ndarray, "h w"]:
    """A random field of deviation 1 without a scale of its own."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = math.inf
    waves = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**_FALL
    field = np.fft.irfft2(waves, s=(height, width))
    return (field / field.std()).astype(np.float32)
