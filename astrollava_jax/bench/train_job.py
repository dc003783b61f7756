"""What all programs of `bench train` read: a model, pictures with words, the file of a run.

Nothing is downloaded: the model has random numbers, photographs are drawn, texts are words of the
simulated sky in the number of a published mix.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from astrollava_jax import files
from astrollava_jax.bench import photographs, random_llava
from astrollava_jax.bench.command import begun_anew
from astrollava_jax.bench.length_mixes import (
    IMAGE_POSITIONS,
    PAIRS,
    QUESTION_WORDS,
    TOKENS_PER_WORD,
    captions,
    dialogues,
    llava_665k,
    short_caption_words,
)
from astrollava_jax.bench.random_llava import FULL, TINY, Size
from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.quickstart.vocabulary import IMAGE_MARKER, tokenizer_files, words
from astrollava_jax.quickstart.words import lexicon

SEED = 0
RATES = {1: 1e-3, 2: 2e-5}
"""Of each stage, in LLaVA-1.5."""

Mix = Literal["llava", "astrollava"]
MIXES: tuple[Mix, ...] = ("llava", "astrollava")
Precision = Literal["bfloat16", "float32"]

PHOTOGRAPHS = 64
"""That are drawn; records take them in turn."""

_MORE = 48
_FRAME = 8
"""Positions of a dialogue beside its words: the roles and their colons, <s>, </s>, a newline."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, and what a step of it sees unless something else is asked for."""

    size: Size
    length: int
    """Positions of our rows."""
    precision: Precision
    about: str
    samples: int | None = None
    """Per step; None: full rows."""
    rows: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """Per step, by stage: as many as one H200 has memory for."""
    micro: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """The same of the samples that transformers computes at a time."""


_WORDS = len(words())
_IMAGE = words().index(IMAGE_MARKER)

_SMOLLM2 = Size(
    embed=576, mlp=1536, layers=30, heads=9, kv_heads=3, words=49_150, rows=49_152,
    tower_embed=384, tower_mlp=1536, tower_layers=12, tower_heads=6, image=224,
    image_id=_IMAGE, tied=True, word_scale=0.1, dtype="float32",
)  # fmt: skip
"""Words near 0.1, so that scores of a tied head are near 1 and a loss says something."""

SHAPES = {
    "tiny": Shape(
        dataclasses.replace(
            TINY, words=_WORDS, rows=_WORDS + 2, kv_heads=2, image_id=_IMAGE,
            tied=True, word_scale=0.1, dtype="float32",
        ),
        length=256, precision="float32", about="for tests", samples=4,
    ),
    "smollm2": Shape(
        _SMOLLM2, length=2048, precision="float32", samples=8,
        about="a decoder of 135 million numbers as SmolLM2's, a tower of 21 million",
    ),
    "llava-1.5-7b": Shape(
        dataclasses.replace(FULL, image_id=_IMAGE), length=2048, precision="bfloat16",
        about="LLaVA-1.5-7B's; for accelerators", rows={1: 16, 2: 6}, micro={1: 32, 2: 16},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A measurement, as all its programs know it."""

    folder: str
    shape: str
    stage: int
    mix: Mix
    samples: int | None
    """Per step; None where a step is so many full rows."""
    rows: int | None
    """Per step, or None."""
    length: int
    """Positions of our rows."""
    steps: int
    precision: Precision
    micro: int | None
    """Most samples that transformers computes at a time, None for all of a step; its packed rows
    are as many as ours."""
    rows_per_device: int | None
    workers: int
    """That read pictures, on both sides."""
    threads: int
    """That compute."""

    @property
    def model(self) -> str:
        """The folder of the model, which is beside the job: others of its sizes have the same."""
        sizes = zlib.crc32(repr(SHAPES[self.shape].size).encode())
        return f"{self.folder}-model-{self.shape}-{sizes:08x}"

    @property
    def run(self) -> str:
        """The file of our run."""
        return files.join(self.folder, "run.yaml")

    @property
    def plan(self) -> str:
        """What our program leaves of the steps."""
        return files.join(self.folder, "plan.npz")

    def photograph(self, record: int) -> str:
        """The picture of a record, which others have too."""
        return files.join(self.folder, "photographs", f"{record % PHOTOGRAPHS:05d}.jpg")

    @classmethod
    def read(cls, folder: files.Where) -> "Job":
        """The job of a folder."""
        return cls(**files.read_json_object(files.join(folder, "job.json")))


_RUN = """\
out: "{folder}/run"
steps: {steps}
init: {{model: "{model}"}}
data: [{{records: "{folder}/records", template: {template}, image: pad}}]
batch: {{{batch}, length: {length}, rows_per_device: {rows_per_device}}}
optimizer:
  groups: [{groups}]
  frozen: [{frozen}]
  schedule: {{type: constant}}
precision: {{compute: {precision}, frozen: {precision}}}
remat: {remat}
workers: {workers}
"""


def write(job: Job, remat: str) -> None:
    """Writes everything that the programs read; what an earlier job left there goes.

    Raises:
        ValueError: if the folder holds something else.
    """
    shape = SHAPES[job.shape]
    files.write_json(files.join(begun_anew(job.folder), "job.json"), dataclasses.asdict(job))
    if not files.exists(job.model):  # it is there whole, or not at all
        random_llava.write(job.model, shape.size)
    for name, content in tokenizer_files().items():
        files.write_bytes(files.join(job.model, name), content)
    side = shape.size.image
    pixels = 1e-6 * side * side
    shown = files.join(job.folder, "photographs")
    photographs.write(shown, min(PHOTOGRAPHS, _records(job)), SEED, (pixels, 1.2 * pixels))
    examples = _examples(job)
    write_set(files.join(job.folder, "records"), examples, name="photographs", split="train")
    trained = ["projector"] if job.stage == 1 else ["projector", "llm"]
    rate = RATES[job.stage]
    groups = [f'{{name: {part}, params: "{part}/.*", peak_lr: {rate}}}' for part in trained]
    frozen = [f'"{part}/.*"' for part in ("vision", "projector", "llm") if part not in trained]
    facts = dataclasses.asdict(job) | {
        "template": "plain" if job.stage == 1 else "model",
        "batch": f"rows: {job.rows}" if job.samples is None else f"samples: {job.samples}",
        "groups": ", ".join(groups),
        "frozen": ", ".join(frozen),
        "remat": remat,
        "folder": _in_quotes(job.folder),
        "model": _in_quotes(job.model),
        "rows_per_device": job.rows_per_device or "null",
    }
    files.write_text(job.run, _RUN.format(**facts))


def _in_quotes(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)[1:-1]


def _records(job: Job) -> int:
    """How many samples there are: all that are used, or more, so that rows can be filled."""
    if job.samples is not None:
        return job.samples * job.steps
    assert job.rows is not None
    positions = job.rows * job.length * job.steps
    return _MORE + 2 * positions // SHAPES[job.shape].size.patches


def _examples(job: Job) -> Iterator[Example]:
    rng = np.random.default_rng(SEED)
    known = np.array(sorted(lexicon()))
    most = job.length - SHAPES[job.shape].size.patches
    for number, (said, pictures) in enumerate(_words(job, _records(job), rng)):
        drawn = rng.choice(known, min(sum(said), most - _FRAME * len(said))).tolist()
        texts = []
        for count in said:
            texts.append(" ".join(drawn[:count]))
            drawn = drawn[count:]
        name = f"{number:05d}"
        image = (files.read_bytes(job.photograph(number)),) if pictures else ()
        if job.stage == 1:
            yield Example(name, image, caption=texts[0])
        else:
            roles: tuple[Any, ...] = ("human", "assistant")
            turns = (Turn(roles[n % 2], text) for n, text in enumerate(texts) if text)
            yield Example(name, image, tuple(turns))


def _words(job: Job, count: int, rng: np.random.Generator) -> list[tuple[list[int], int]]:
    """Of each sample, the words of its texts, and whether it has a picture."""
    if job.stage == 1:
        if job.mix == "llava":
            lengths = np.round(TOKENS_PER_WORD * short_caption_words(count, rng)).astype(int)
        else:
            lengths = captions(count, rng).tokens - IMAGE_POSITIONS - 2
        return [([int(length)], 1) for length in lengths]
    mix = dialogues if job.mix == "astrollava" else llava_665k
    found = mix(count, rng)
    text = found.tokens - IMAGE_POSITIONS * found.images
    return [_dialogue(int(t), int(i), rng) for t, i in zip(text, found.images)]


def _dialogue(text: int, pictures: int, rng: np.random.Generator) -> tuple[list[int], int]:
    """Questions and answers in turn, of so many positions together."""
    pairs = int(rng.choice(list(PAIRS)))
    asked = max(1, round(TOKENS_PER_WORD * QUESTION_WORDS[0]))
    answered = max(1, (text - pairs * (asked + _FRAME)) // pairs)
    return [asked, answered] * pairs, pictures


def labels(targets: Int[np.ndarray, "R T"], index: Int[np.ndarray, "R K"]) -> np.ndarray:
    """Labels as transformers has them, from what is learned after which positions; -100 else."""
    found = np.full(targets.shape, -100, np.int64)
    row, slot = np.nonzero(index >= 0)
    place = index[row, slot]
    found[row, place + 1] = targets[row, place]
    return found


def in_parts(numbers: list[int], most: int | None) -> list[list[int]]:
    """The samples of a step in micro-batches of at most so many."""
    most = most or len(numbers)
    return [numbers[start : start + most] for start in range(0, len(numbers), most)]
