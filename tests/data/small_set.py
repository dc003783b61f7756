"""A small record set, and a tokenizer that gives one token per word."""

import io
import json

import numpy as np
import tokenizers
from PIL import Image

from astrollava_jax.batch import ImageFacts
from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.data.tokenizer import Tokenizer

WORDS = ("a", "star", "two", "galaxy", "red", "blue", "far", "old", "young", "round")

# Two positions per image.
FACTS = ImageFacts(
    size=4,
    patch=4,
    tokens=2,
    pad_color=(0, 0, 0),
    pixel_mean=(0.0, 0.0, 0.0),
    pixel_std=(1.0, 1.0, 1.0),
)


def tokenizer(folder) -> Tokenizer:
    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *WORDS]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<pad>", "<image>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = names | {"add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_folder(folder)


def picture(value: int) -> bytes:
    """A PNG of one shade."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(content, "PNG")
    return content.getvalue()


def examples(count: int) -> list[Example]:
    """Captions of 1 to 6 words; every fourth sample has two pictures, every fifth has none."""
    rng = np.random.default_rng(0)
    return [
        Example(
            id=f"sky-{number}",
            images=(picture(number % 251), picture(7))[
                : 0 if number % 5 == 4 else 1 + (number % 4 == 3)
            ],
            caption=" ".join(rng.choice(WORDS, size=rng.integers(1, 7))),
            turns=(Turn("human", "a star"), Turn("assistant", "two")),
        )
        for number in range(count)
    ]


def numbered(count: int) -> list[Example]:
    """The number is in every field: few bytes, no to two images, a dialogue in every other one."""
    return [
        Example(
            id=f"sky-{number}",
            images=(bytes([number]) * (10 + number),) * (number % 3),
            turns=(Turn("human", f"{number}?"), Turn("assistant", "Yes.")) * (number % 2),
            caption=f"Number {number}.",
        )
        for number in range(count)
    ]


def source(folder, count: int = 40) -> TFRecordSource:
    write_set(folder, examples(count), name="sky", split="train", records_per_shard=16)
    return TFRecordSource(folder)


def reader(folder, count: int = 40, length: int = 16) -> Reader:
    """Reads `count` records written below `folder`."""
    folder.mkdir(exist_ok=True)
    return Reader([Part(source(folder / "set", count), "plain")], tokenizer(folder), FACTS, length)
