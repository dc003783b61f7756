"""Pictures of any resolution: the model against LLaVA-NeXT of transformers, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
from tiny_llava import IMAGE_ID, assert_close

from astrollava_jax.batch import Batch
from astrollava_jax.data.image import normalize
from astrollava_jax.data.pieces import Rendered
from astrollava_jax.data.rows import RowShape, Sample, Slot, build_row
from astrollava_jax.data.samples import expand
from astrollava_jax.data.tiles import layout
from astrollava_jax.params import merge, split
from astrollava_jax.training.step import loss_weights, weighted_nll

CONFIG = tiny_llava.next_config()
FACTS = CONFIG.image_facts
SIZES = ((90, 40), (60, 90))
"""Of the pictures: the canvas of one has three tiles, that of the other four; of each the lines in
the middle are left, 4 + 4 x 2 + 4 and 4 + 2 x 4 + 2 positions."""

PAD = 0


@pytest.fixture(scope="module")
def pair():
    """The same numbers in both systems."""
    theirs = tiny_llava.torch_next()
    numbers = tiny_llava.by_address(dict(theirs.named_parameters()))
    graphdef, abstract = split(CONFIG.abstract())
    assert {a: x.shape for a, x in numbers.items()} == {a: x.shape for a, x in abstract.items()}
    return theirs, graphdef, {a: jnp.asarray(x) for a, x in numbers.items()}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Words, a picture, words: the last of them are learned."""
    rng = np.random.default_rng(0)
    made = []
    for number, (size, count) in enumerate(zip(SIZES, (4 + 4 * 2 + 4, 4 + 2 * 4 + 2))):
        tokens = rng.integers(3, 60, 12).astype(np.int32)
        tokens[2] = IMAGE_ID
        learned = np.arange(len(tokens)) > 5
        words = expand(Rendered(tokens, learned), IMAGE_ID, [layout(size, FACTS)], FACTS.tokens)
        assert len(words.tokens) == 11 + count
        pixels = rng.integers(0, 256, (words.num_images, 28, 28, 3)).astype(np.uint8)
        slot = Slot(number, number, len(words.tokens), words.num_images, words.num_learned)
        made.append(Sample(slot, words, tuple(pixels)))
    return made


def rows(*packed: list[Sample]) -> Batch:
    shape = RowShape(length=64, learned=16, images=9, samples=4)
    found = [build_row(samples, shape, FACTS, PAD) for samples in packed]
    return Batch(*(jnp.asarray(np.stack(field)) for field in zip(*found)))


def theirs_takes(samples: list[Sample], length: int) -> dict[str, torch.Tensor]:
    """The samples as transformers' processor and collator make them."""
    ids, mask, labels = (np.full((len(samples), length), value) for value in (PAD, 0, -100))
    most = max(sample.words.num_images for sample in samples)
    pixels = np.zeros((len(samples), most, 3, 28, 28), np.float32)
    for row, sample in enumerate(samples):
        words, end = sample.words, len(sample.words.tokens)
        ids[row, :end], mask[row, :end] = words.tokens, 1
        labels[row, :end] = np.where(words.learned, words.tokens, -100)
        seen = normalize(np.stack(sample.pixels), FACTS)
        pixels[row, : len(seen)] = seen.transpose(0, 3, 1, 2)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
        "pixel_values": torch.tensor(pixels),
        "image_sizes": torch.tensor(SIZES),
    }


def test_logits_loss_and_gradients(pair, samples):
    theirs, graphdef, params = pair
    batch = rows(*([sample] for sample in samples))
    output = theirs(**theirs_takes(samples, batch.tokens.shape[1]))
    output.loss.backward()

    def loss(params):
        model = merge(graphdef, params)
        hidden = model(batch, dtype=jnp.float32, remat="full")
        weights = loss_weights(batch.learned_sample, "tokens", 2)
        total = weighted_nll(model, hidden, batch, weights, 2)
        return total / weights.sum(), model.logits(hidden)

    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    for row, sample in enumerate(samples):
        end = len(sample.words.tokens)
        assert_close(logits[row, :end], output.logits[row, :end].detach().numpy(), f"logits {row}")
    assert_close(value, output.loss.item(), "loss")
    named = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in theirs.named_parameters()
    }
    expected = tiny_llava.by_address(named)
    assert np.abs(expected["image_newline/embedding"]).max() > 0
    assert set(expected) == set(gradients)
    for address, gradient in gradients.items():
        # The true gradient of a key's bias is 0: its rounding is measured against the query's.
        scale = np.abs(expected[address.replace("k_proj/bias", "q_proj/bias")]).max()
        difference = np.abs(np.asarray(gradient) - expected[address]).max()
        assert difference <= 1e-4 * scale, address


def test_a_row_of_two_pictures_equals_two_rows(pair, samples):
    _, graphdef, params = pair
    model = merge(graphdef, params)
    with jax.default_matmul_precision("highest"):
        apart = model(rows(*([sample] for sample in samples)), dtype=jnp.float32)
        together = model(rows(samples), dtype=jnp.float32)
    start = 0
    for row, sample in enumerate(samples):
        end = len(sample.words.tokens)
        assert_close(together[0, start : start + end], apart[row, :end], f"sample {row}")
        start += end
