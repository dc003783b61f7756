"""Pictures in any turn, several or none, packed into one row, beside transformers one by one."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import small_run
import torch
from PIL import Image
from tiny_llava import assert_close
from transformers import AutoProcessor, LlavaForConditionalGeneration

from astrollava_jax.batch import Batch
from astrollava_jax.data.example import Example, Turn
from astrollava_jax.data.rows import RowBuilder, RowShape, Slot
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.params import merge, split
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.load import load
from astrollava_jax.weights.source import Source

LENGTH = 192
DIALOGUES = {
    "turns 1 and 3": ["<image>\nwhat is this?", "a galaxy.", "and <image> this?", "a star."],
    "turn 3 alone": ["hello", "what is this?", "<image>", "a red galaxy."],
    "text alone": ["what is a galaxy?", "stars.", "how many?", "two."],
    "two in a turn": ["is <image> as <image> this?", "no.", "and <image>?", "this is."],
    "no marker": ["which is blue?", "the galaxy."],
}
"""Without a marker, images come first: here, two of them."""


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for name, texts in DIALOGUES.items():
        count = 2 if name == "no marker" else sum(text.count("<image>") for text in texts)
        side = small_run.SIZE
        images = []
        for pixels in rng.integers(0, 256, (count, side, side, 3), np.uint8):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            images.append(content.getvalue())
        turns = [Turn("assistant" if i % 2 else "human", text) for i, text in enumerate(texts)]
        found.append(Example(id=name, images=tuple(images), turns=tuple(turns)))
    return found


def packed(folder: Path, source: Source) -> Batch:
    """The row of the training pipeline that holds all of them."""
    write_set(folder / "set", examples(), name="sky", split="train")
    parts = [Part(TFRecordSource(folder / "set"), "model")]
    reader = Reader(parts, source.tokenizer, source.config.image_facts, LENGTH)
    slots = []
    for record in range(len(reader)):
        words = reader.words(record, reader.read(record))
        assert words.num_images == len(reader.read(record).images)
        slots.append(Slot(record, record, len(words.tokens), words.num_images, words.num_learned))
    row = RowBuilder(reader, RowShape(LENGTH, learned=LENGTH, images=8, samples=8))(slots)
    assert not row.faults and [name for _, name in row.records] == list(DIALOGUES)
    return row.arrays


def theirs(base: Path, example: Example):
    """The ids and scores of transformers for one dialogue; each image on a line before the text."""
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(base)
    marked = any("<image>" in turn.text for turn in example.turns)
    images = [{"type": "image", "image": Image.open(io.BytesIO(e))} for e in example.images]
    messages = []
    for number, turn in enumerate(example.turns):
        count = turn.text.count("<image>") if marked or number else len(images)
        shown, images = images[:count], images[count:]
        text = {"type": "text", "text": turn.text.replace("<image>", "").strip()}
        role = {"human": "user", "assistant": "assistant"}[turn.role]
        messages.append({"role": role, "content": [*shown, text]})
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return inputs["input_ids"][0].numpy(), model.eval()(**inputs).logits[0].numpy()


def test_a_packed_row_of_all_kinds_equals_transformers_one_by_one(sky, tmp_path):
    source = open_model(sky / "base")
    row = packed(tmp_path, source)
    params = load(source, source.shapes, dtypes="float32")
    graphdef, _ = split(source.config.abstract())
    batch = row.map(lambda field: jnp.asarray(field[None]))
    with jax.default_matmul_precision("highest"):
        model = merge(graphdef, params)
        logits = np.asarray(model.logits(model(batch, dtype=jnp.float32)))[0]
    for segment, example in enumerate(examples(), start=1):
        here = row.segment_ids == segment
        ids, expected = theirs(sky / "base", example)
        assert row.tokens[here].tolist() == ids.tolist(), example.id
        assert_close(logits[here], expected, example.id)
