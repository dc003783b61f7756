"""The model against transformers, in float32: parts, logits, loss, and every gradient."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
from tiny_llava import assert_close

from astrollava_jax.batch import Batch
from astrollava_jax.params import merge, split
from astrollava_jax.training.step import loss_weights, weighted_nll


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def pair(request):
    """The same numbers in both systems."""
    theirs = tiny_llava.torch_model(tie=request.param)
    config = tiny_llava.our_config(tie=request.param)
    numbers = tiny_llava.by_address(dict(theirs.named_parameters()), tie=request.param)
    graphdef, abstract = split(config.abstract())
    assert {a: x.shape for a, x in numbers.items()} == {a: x.shape for a, x in abstract.items()}
    return theirs, config, graphdef, {a: jnp.asarray(x) for a, x in numbers.items()}


@pytest.fixture
def sample() -> Batch:
    """Two rows of one sample each: words, a picture of four patches, words."""
    return families.sample(prefix=0, size=28).map(jnp.asarray)


def test_tower_and_projector(pair, sample):
    theirs, config, graphdef, params = pair
    model = merge(graphdef, params)
    images = families.asked(sample, config.vision)["pixel_values"]
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        hidden = theirs.model.vision_tower(images, output_hidden_states=True).hidden_states
        for layer in (-1, -2, 0, 1):
            ours = model.vision(sample.images[:, 0], layer=layer, dtype=jnp.float32)
            assert_close(ours, hidden[layer].numpy(), f"hidden states {layer}")
        projected = theirs.model.multi_modal_projector(hidden[-2][:, 1:])
        assert_close(model.encode(sample.images[:, 0], jnp.float32), projected.numpy(), "features")


def test_decoder_layer(pair):
    theirs, _, graphdef, params = pair
    x = np.random.default_rng(1).normal(size=(2, 9, 48)).astype(np.float32)
    decoder = theirs.model.language_model
    positions = torch.arange(9)[None].expand(2, -1)
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        angles = decoder.rotary_emb(torch.tensor(x), positions)
        mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        one = decoder.layers[0](torch.tensor(x), attention_mask=mask, position_embeddings=angles)
        one = one[0] if isinstance(one, tuple) else one
        first = {a: x[:1] if "/layers/" in a else x for a, x in params.items()}
        llm = merge(graphdef, first).llm
        llm.norm.scale.set_value(jnp.ones(48))
        ours = llm(jnp.asarray(x), jnp.ones((2, 9), jnp.int32), jnp.asarray(positions.numpy()))
    # Our stack ends with the last norm: undo it by norming theirs as well.
    theirs_normed = one / torch.sqrt((one**2).mean(-1, keepdim=True) + 1e-5)
    assert_close(ours, theirs_normed.numpy(), "decoder layer")


def test_logits_loss_and_gradients(pair, sample):
    theirs, config, graphdef, params = pair
    output = families.their_output(theirs, sample, config.vision)

    def loss(params):
        model = merge(graphdef, params)
        hidden = model(sample, dtype=jnp.float32, remat="full")
        weights = loss_weights(jnp.asarray(sample.learned_sample), "tokens", 2)
        total = weighted_nll(model, hidden, sample, weights, 2)
        return total / weights.sum(), model.logits(hidden)

    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    assert_close(logits, output.logits.detach().numpy(), "logits")
    assert_close(value, output.loss.item(), "loss")
    named = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    unused = {n: torch.zeros_like(p) for n, p in theirs.named_parameters() if p.grad is None}
    expected = tiny_llava.by_address(named | unused, tie="lm_head.weight" not in named)
    assert set(expected) == set(gradients)
    for address, gradient in gradients.items():
        if np.abs(expected[address]).max() == 0:
            assert np.abs(gradient).max() == 0, address
        else:
            # A key's bias shifts all scores of a query alike: its true gradient is 0, what both
            # systems hold is rounding, so it is measured against the query's.
            scale = expected[address.replace("k_proj/bias", "q_proj/bias")]
            difference = np.abs(np.asarray(gradient) - expected[address]).max()
            assert difference <= 1e-4 * np.abs(scale).max(), address


def test_a_row_of_two_samples_equals_two_rows(pair, sample):
    _, _, graphdef, params = pair
    model = merge(graphdef, params)
    both = Batch(
        tokens=sample.tokens.reshape(1, -1),
        targets=sample.targets.reshape(1, -1),
        learned_index=sample.learned_index[:1],
        learned_sample=sample.learned_sample[:1],
        segment_ids=jnp.repeat(jnp.array([[1, 2]]), families.LENGTH, axis=1),
        positions=sample.positions.reshape(1, -1),
        images=sample.images.reshape(1, 2, 28, 28, 3),
        feature_index=jnp.where(
            sample.feature_index < 0, -1, sample.feature_index + jnp.array([[0], [4]])
        ).reshape(1, -1),
    )
    with jax.default_matmul_precision("highest"):
        apart = model(sample, dtype=jnp.float32)
        together = model(both, dtype=jnp.float32)
    assert_close(together.reshape(apart.shape), apart, "packed")
