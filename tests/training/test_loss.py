"""What each learned token counts, by hand; and the loss in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_llava

from astrollava_jax.batch import Batch
from astrollava_jax.params import merge, split
from astrollava_jax.training import step
from astrollava_jax.training.step import GroupMeans, loss_weights, weighted_nll


def test_tokens_count_alike():
    weights = loss_weights(jnp.array([[0, 0, 1, -1], [2, -1, -1, -1]]), "tokens", 3)
    assert weights.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_group_means_by_hand():
    # Groups of two samples: {0, 1} learn 4 tokens, {2, 3} learn 1, {4} learns none.
    samples = jnp.array([[[0, 0, 0, 1]], [[3, -1, -1, -1]]])
    weights = loss_weights(samples, GroupMeans(mean_over_groups_of=2), 5)
    assert weights.tolist() == [[[0.25] * 4], [[1, 0, 0, 0]]]
    # So sum(weight x nll) / sum(weight) is the mean of the two groups' means.
    nll = jnp.array([[[1.0, 2.0, 3.0, 6.0]], [[5.0, 9.0, 9.0, 9.0]]])
    assert float((weights * nll).sum() / weights.sum()) == (3.0 + 5.0) / 2


def test_chunks_change_nothing(monkeypatch):
    config = tiny_llava.our_config()
    numbers = tiny_llava.by_address(dict(tiny_llava.torch_model().named_parameters()))
    graphdef, _ = split(config.abstract())
    params = {address: jnp.asarray(value) for address, value in numbers.items()}
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 12, config.llm.embed_dim)), jnp.float32)
    learned = jnp.asarray([[0, 1, 2, 3, 5, 7, 8], [4, 6, -1, -1, -1, -1, -1]], jnp.int32)
    empty = jnp.zeros((2, 12), jnp.int32)
    batch = Batch(
        tokens=empty,
        targets=jnp.asarray(rng.integers(0, config.llm.vocab_size, (2, 12)), jnp.int32),
        learned_index=learned,
        learned_sample=jnp.where(learned >= 0, 0, -1),
        segment_ids=empty,
        positions=empty,
        images=jnp.zeros((2, 1, 28, 28, 3), jnp.uint8),
        feature_index=empty - 1,
    )
    weights = loss_weights(batch.learned_sample, "tokens", 1)

    def loss(hidden, limit):
        monkeypatch.setattr(step, "LOGITS_IN_FLIGHT", limit)
        return weighted_nll(merge(graphdef, params), hidden, batch, weights, 2)

    whole, in_chunks = (jax.value_and_grad(loss)(hidden, limit) for limit in (1 << 24, 2 * 64 * 2))
    np.testing.assert_allclose(in_chunks[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(in_chunks[1], whole[1], rtol=1e-5, atol=1e-7)
    scores = merge(graphdef, params).logits(hidden)
    expected = 0.0
    for row, place in [(0, p) for p in (0, 1, 2, 3, 5, 7, 8)] + [(1, 4), (1, 6)]:
        expected -= jax.nn.log_softmax(scores[row, place])[batch.targets[row, place]]
    np.testing.assert_allclose(whole[0], expected, rtol=1e-5)
