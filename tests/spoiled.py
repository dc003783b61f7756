"""NaN in pixels. They come as bytes, which hold none: what makes numbers of them is broken."""

import jax.numpy as jnp
import numpy as np
import pytest

from astrollava_jax.models.vision import Tower

COLOUR = 201
"""A picture of nothing but this becomes NaN."""


def break_normalisation(patch: pytest.MonkeyPatch) -> None:
    """Lets the tower see NaN in pictures of one colour, in what is compiled from here on."""
    whole = Tower.patches

    def patches(self, images, dtype):
        bad = jnp.all(images == np.uint8(COLOUR), axis=(1, 2, 3))
        return jnp.where(bad[:, None, None, None, None], jnp.nan, whole(self, images, dtype))

    patch.setattr(Tower, "patches", patches)
