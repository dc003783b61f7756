"""What both programs read in `bench input`: photographs with captions, as files and as records."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from astrollava_jax import files
from astrollava_jax.batch import ImageFacts
from astrollava_jax.bench import photographs
from astrollava_jax.bench.length_mixes import Counts, caption_words, short_caption_words
from astrollava_jax.data.image import Square
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.clip import MEAN, STD
from astrollava_jax.quickstart.vocabulary import tokenizer_files
from astrollava_jax.quickstart.words import lexicon
from data_prep.llava_json import convert
from data_prep.llava_sample import Pictures
from data_prep.tally import Tally

SEED = 0
PATCH = 14

Words = Literal["llava", "astrollava"]
CAPTIONS: dict[Words, Callable[[int, np.random.Generator], Counts]] = {
    "llava": short_caption_words,
    "astrollava": caption_words,
}
"""How many words the captions of each have."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The files of a measurement, and how pictures are to be seen."""

    folder: str
    photographs: tuple[str, ...]
    """Paths, in the order of the records."""
    captions: tuple[str, ...]
    side: int
    mode: Square

    @property
    def tokenizer_folder(self) -> str:
        """Read by both programs."""
        return files.join(self.folder, "tokenizer")

    def records(self, what: str) -> str:
        """The folder of the set `original` or `small`."""
        return files.join(self.folder, what, "train")

    @property
    def facts(self) -> ImageFacts:
        """The tower of LLaVA-1.5, or one of its kind with a smaller picture."""
        red, green, blue = (int(255 * mean) for mean in MEAN)
        tokens = (self.side // PATCH) ** 2
        return ImageFacts(self.side, PATCH, tokens, (red, green, blue), MEAN, STD)


def write(
    folder: files.Where,
    *,
    count: int,
    megapixels: tuple[float, float],
    side: int,
    mode: Square,
    words: Words = "llava",
    tokenizer: files.Where | None = None,
) -> Job:
    """Draws the photographs, gives each a caption, and writes both sets.

    Args:
        folder: for everything; must be new.
        count: of photographs.
        megapixels: least and most of a photograph.
        side: of the tower's picture, in pixels.
        mode: how a photograph is made square.
        words: whose captions these are like, in their length.
        tokenizer: a model's folder; None for the one of the simulated sky.
    """
    shown = files.join(folder, "photographs")
    names = photographs.write(shown, count, SEED, megapixels)
    captions = _captions(count, words)
    samples = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>"},
                {"from": "gpt", "value": caption},
            ],
        }
        for name, caption in zip(names, captions)
    ]
    for what, size in (("original", 0), ("small", side)):
        convert(
            samples,
            files.join(folder, what),
            pictures=Pictures(shown, size, mode, by_id=False),
            name="photographs",
            split="train",
            heldout=0.0,
            tally=Tally(),
        )
    job = Job(str(folder), tuple(files.join(shown, name) for name in names), captions, side, mode)
    own = tokenizer_files() if tokenizer is None else Tokenizer.from_folder(tokenizer).files()
    for name, content in own.items():
        files.write_bytes(files.join(job.tokenizer_folder, name), content)
    return job


def _captions(count: int, words: Words) -> tuple[str, ...]:
    rng = np.random.default_rng(SEED)
    known = np.array(sorted(lexicon()))
    lengths = CAPTIONS[words](count, rng).tolist()
    return tuple(" ".join(rng.choice(known, length).tolist()) for length in lengths)
