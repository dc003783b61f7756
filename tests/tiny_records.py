"""Small record sets: shades of grey, each with a caption and a dialogue."""

import io
from pathlib import Path

from PIL import Image

from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.tfrecord import write_set

CAPTIONS = ("a spiral galaxy.", "two stars.", "a ring nebula, seen from above.", "a comet.")


def picture(shade: int) -> bytes:
    """A PNG of one shade."""
    content = io.BytesIO()
    Image.new("L", (8, 8), shade).save(content, "PNG")
    return content.getvalue()


def example(number: int) -> Example:
    """One picture, one caption, two questions."""
    caption = CAPTIONS[number % len(CAPTIONS)]
    return Example(
        id=f"grey-{number}",
        images=(picture(number % 256),),
        turns=(
            Turn("human", "What is this?"),
            Turn("assistant", caption),
            Turn("human", "Is it near?"),
            Turn("assistant", "No."),
        ),
        caption=caption,
    )


def write(folder: Path, count: int) -> str:
    """Writes a set of `count` examples; returns its folder."""
    write_set(folder, map(example, range(count)), name="grey", split="train")
    return str(folder)
