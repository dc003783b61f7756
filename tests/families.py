"""What every family of decoders and towers is held to: a tiny LLaVA of transformers on it.

Weights go through transformers' own files, gradients through the same names: what reads the one
reads the other, so that nothing of the comparison is written twice. A tensor that is read wrongly
shows in the logits.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from tiny_llava import IMAGE_ID, VOCABULARY, assert_close, our_config, spread
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)

from astrollava_jax.batch import Batch
from astrollava_jax.inference.cache import empty_cache, read_on
from astrollava_jax.models import llava
from astrollava_jax.params import merge, split
from astrollava_jax.training.step import loss_weights, weighted_nll
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.load import load
from astrollava_jax.weights.save import save

LENGTH, START = 24, 2

DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""What the tiny decoders share; a family adds what makes it one."""

OURS = {
    "vocab_size": VOCABULARY, "embed_dim": 48, "mlp_dim": 80, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 12,
}  # fmt: skip
"""The same in our words."""

TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def on(llm: Any) -> llava.LlavaConfig:
    """Our config of a decoder behind that tower."""
    return dataclasses.replace(our_config(), llm=llm)


def clip() -> CLIPVisionConfig:
    """The tower of tests that are about decoders."""
    return CLIPVisionConfig(**TOWER, projection_dim=16)


def torch_model(
    text: PreTrainedConfig, tower: PreTrainedConfig | None = None, strategy: str = "default"
) -> LlavaForConditionalGeneration:
    """A random model, its numbers large enough to matter."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=tower or clip(), text_config=text, image_token_index=IMAGE_ID,
        tie_word_embeddings=text.tie_word_embeddings, vision_feature_layer=-2,
        vision_feature_select_strategy=strategy, image_seq_length=4,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return spread(LlavaForConditionalGeneration(config).eval().float())


@functools.cache
def sample(prefix: int, size: int) -> Batch:
    """Two rows of words, a picture and words; `prefix` features come before its patches."""
    rng, patches = np.random.default_rng(0), 4 + prefix
    tokens = rng.integers(3, 60, (2, LENGTH)).astype(np.int32)
    tokens[:, START : START + patches] = IMAGE_ID
    feature_index = np.full((2, LENGTH), -1, np.int32)
    feature_index[:, START : START + patches] = np.arange(patches)
    learned = np.tile(np.arange(START + patches + 1, LENGTH - 1, dtype=np.int32), (2, 1))
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        learned_index=learned,
        learned_sample=np.tile(np.array([[0], [1]], np.int32), (1, learned.shape[1])),
        segment_ids=np.ones((2, LENGTH), np.int32),
        positions=np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1)),
        images=rng.integers(0, 256, (2, 1, size, size, 3)).astype(np.uint8),
        feature_index=feature_index,
    )


def asked(batch: Batch, tower: Any) -> dict[str, torch.Tensor]:
    """The batch as transformers takes it."""
    images = np.asarray(batch.images[:, 0], np.float32) / 255
    images = (images - np.array(tower.pixel_mean)) / np.array(tower.pixel_std)
    labels = np.full(batch.tokens.shape, -100)
    for row, learned in enumerate(np.asarray(batch.learned_index)):
        labels[row, learned + 1] = batch.targets[row, learned]
    return {
        "input_ids": torch.tensor(np.asarray(batch.tokens), dtype=torch.long),
        "pixel_values": torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32)),
        "attention_mask": torch.ones(batch.tokens.shape, dtype=torch.long),
        "labels": torch.tensor(labels),
    }


def their_output(model: LlavaForConditionalGeneration, batch: Batch, tower: Any) -> Any:
    """Logits and loss of transformers; the gradients stay at its parameters."""
    output = model(**asked(batch, tower))
    output.loss.backward()
    return output


def our_output(graphdef, params, batch: Batch):
    """Logits, loss and all gradients."""

    def loss(params):
        model = merge(graphdef, params)
        hidden = model(batch, dtype=jnp.float32, remat="full")
        weights = loss_weights(jnp.asarray(batch.learned_sample), "tokens", 2)
        total = weighted_nll(model, hidden, batch, weights, 2)
        return total / weights.sum(), model.logits(hidden)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def assert_equal_to_transformers(
    model: LlavaForConditionalGeneration,
    folder: Path,
    expected: Any,
    *,
    capped: float | None = None,
) -> None:
    """Holds logits, loss, gradients, decoding and exports of a model to transformers' own.

    Args:
        model: of transformers.
        folder: for files.
        expected: our config of it.
        capped: what the decoder bends its scores to, where the LLaVA of transformers forgets it.
    """
    model.save_pretrained(folder / "theirs")
    source = open_model(folder / "theirs")
    assert source.config == expected
    params = load(source, source.shapes, dtypes="float32")
    graphdef, _ = split(source.config.abstract())
    prefix = source.config.image_facts.tokens - source.config.vision.num_patches
    tower = source.config.vision
    batch = sample(prefix, tower.image_size)
    if capped is None:
        output = their_output(model, batch, tower)
    else:
        head = model.lm_head.forward
        model.lm_head.forward = lambda x: capped * torch.tanh(head(x) / capped)  # pyright: ignore
        output = their_output(model, batch, tower)
        model.lm_head.forward = head  # pyright: ignore
    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = our_output(graphdef, params, batch.map(jnp.asarray))
        assert_remembers(merge(graphdef, params).llm)
    assert_close(logits, output.logits.detach().numpy(), "logits")
    assert_close(value, output.loss.item(), "loss")
    assert_gradients(model, folder, gradients)
    assert_round_trip(model, folder, source)


def assert_gradients(model, folder: Path, gradients) -> None:
    """Compares all gradients, theirs read from a file in which they stand in place of weights."""
    named = {n: p.grad if p.grad is not None else torch.zeros_like(p)
             for n, p in model.named_parameters()}  # fmt: skip
    files = folder / "gradients"
    model.config.save_pretrained(files)
    tensors = {name: grad.contiguous() for name, grad in named.items()}
    safetensors.torch.save_file(tensors, files / "model.safetensors")
    theirs = open_model(files)
    assert set(theirs.shapes) == set(gradients)
    for address, gradient in gradients.items():
        expected = theirs.read(address)
        # A key's bias shifts all scores of a query alike: its true gradient is 0, what both
        # systems hold is rounding, so it is measured against the query's.
        scale = theirs.read(address.replace("k_proj/bias", "q_proj/bias"))
        difference = np.abs(np.asarray(gradient) - expected).max()
        assert difference <= 1e-4 * np.abs(scale).max(), address


def assert_round_trip(model, folder: Path, source) -> None:
    """Through our layout to one of transformers, which loads it whole; equal to the last bit."""
    save(folder / "ours", "orbax", source)
    save(folder / "again", "hf", open_model(folder / "ours"))
    again, info = LlavaForConditionalGeneration.from_pretrained(
        folder / "again", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    found, expected = again.state_dict(), model.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert open_model(folder / "again").config == source.config


def assert_remembers(llm) -> None:
    """Reading piece by piece gives what reading at once gives, windows included."""
    width = llm.config.embed_dim
    x = np.random.default_rng(1).normal(size=(2, 12, width)).astype(np.float32)
    places = np.tile(np.arange(12), (2, 1))

    @jax.jit
    def both(x):
        cache, pieces = empty_cache(llm, 2, 16, x.dtype), []
        for here in (slice(0, 7), slice(7, 8), slice(8, 12)):
            piece, cache = read_on(llm, x[:, here], jnp.asarray(places[:, here]), cache)
            pieces.append(piece)
        whole = llm(x, jnp.ones((2, 12), jnp.int32), jnp.asarray(places))
        return jnp.concatenate(pieces, axis=1), whole

    assert_close(*both(x), "hidden states read piece by piece", 1e-5)
