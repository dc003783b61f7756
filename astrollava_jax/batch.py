"""Batch: the arrays that pass from data to model, the only thing one makes and the other eats.

It is NumPy, and all its shapes are decided on the data side, once, and are static.
Letters: B rows, T positions, K learned positions, I images per row, S samples per row, h w pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TEXT, NEWLINE = -1, -2
"""Values of `feature_index` where no image feature stands."""


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What data must know of the vision tower to prepare its pixels."""

    size: int
    """Side of the square image, in pixels."""
    patch: int
    """Side of a patch, in pixels."""
    tokens: int
    """Features of one image: the decoder positions that it takes, unless it is a tile."""
    pad_color: tuple[int, int, int]
    """The colour that makes an image square: 255 x mean, cut to whole numbers."""
    pixel_mean: tuple[float, float, float]
    """Subtracted from pixels in [0, 1], per channel."""
    pixel_std: tuple[float, float, float]
    """Divides the pixels after that, per channel."""
    grid: tuple[tuple[int, int], ...] | None = None
    """Canvases (height, width) of which tiles are cut; None where a picture is one image."""


class Batch(NamedTuple):
    """Some packed rows. Every field is an array with the rows in front.

    ```
    tokens          <s> <img> <img>  a  star </s>  <s> <img> <img>  two </s> <pad>
    segment_ids      1    1     1    1    1    1    2    2     2     2    2    0
    positions        0    1     2    3    4    5    0    1     2     3    4    0
    feature_index   -1    0     1   -1   -1   -1   -1    2     3    -1   -1   -1
    targets          .    .     a  star </s>   .    .    .    two  </s>   .    .
    learned_index    2    3     4    8    9   -1        (K = 6)
    learned_sample   0    0     0    1    1   -1
    lengths          6    5     0               (S = 3)
    ```
    """

    tokens: Any
    """int32 [B, T]; image positions hold the image token."""
    targets: Any
    """int32 [B, T]: the token that follows, meaningful at learned positions only."""
    learned_index: Any
    """int32 [B, K]: the positions with loss, -1 in empty slots."""
    learned_sample: Any
    """int32 [B, K]: which sample of the step each slot belongs to, -1 in empty slots."""
    segment_ids: Any
    """int32 [B, T]: 1, 2, ... per sample of the row, 0 where nothing stands."""
    positions: Any
    """int32 [B, T]: restart with each sample."""
    images: Any
    """uint8 [B, I, h, w, 3]; a tile is an image; missing ones are zeros."""
    feature_index: Any
    """int32 [B, T]: -1 for text, -2 for the end of a line of a picture that was cut into tiles,
    else which of the row's I x P image features stands here."""
    lengths: Any = None
    """int32 [B, S]: how many positions each sample of the row takes that takes any, 0 in empty
    slots. It says no more than `segment_ids`, but how many samples a row can hold; None where
    nobody asks."""

    def map(self, function: Callable[[Any], Any]) -> "Batch":
        """The batch with `function` applied to every field."""
        return Batch(*(None if field is None else function(field) for field in self))


def empty_rows(
    rows: int, length: int, learned: int, images: int, samples: int, facts: ImageFacts
) -> Batch:
    """Rows in which nothing stands and nothing is learned: what padding is made of."""

    def filled(value: int, *shape: int) -> np.ndarray:
        return np.full((rows, *shape), value, np.int32)

    return Batch(
        tokens=filled(0, length),
        targets=filled(0, length),
        learned_index=filled(-1, learned),
        learned_sample=filled(-1, learned),
        segment_ids=filled(0, length),
        positions=filled(0, length),
        images=np.zeros((rows, images, facts.size, facts.size, 3), np.uint8),
        feature_index=filled(TEXT, length),
        lengths=filled(0, samples),
    )
