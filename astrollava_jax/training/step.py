"""The loss, the training step and the evaluation step: pure functions."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from astrollava_jax.batch import Batch
from astrollava_jax.config import config
from astrollava_jax.models import dropout
from astrollava_jax.models.attention import Kernel
from astrollava_jax.models.layers import gather_rows
from astrollava_jax.models.llava import Llava
from astrollava_jax.models.remat import Remat
from astrollava_jax.params import Params, merge
from astrollava_jax.sharding import shard
from astrollava_jax.training import anomaly
from astrollava_jax.training.gradients import value_and_gradients
from astrollava_jax.training.optimizer import AdamW
from astrollava_jax.training.state import TrainState

LOGITS_IN_FLIGHT = 1 << 24
"""Scores that exist at one time on a device: 64 MiB in float32."""

Metrics = dict[str, Array]


@config
class GroupMeans:
    """The mean of the token means of consecutive groups of samples.

    It is LLaVA's loss, where a group is what one device holds in one micro-batch.
    """

    mean_over_groups_of: int
    """Samples per group."""

    def __post_init__(self):
        if self.mean_over_groups_of < 1:
            raise ValueError("mean_over_groups_of must be at least 1")


Loss = Literal["tokens"] | GroupMeans
"""`tokens`: the mean over all learned tokens of the global batch."""


def loss_weights(
    learned_sample: Int[Array, "*rows K"], loss: Loss, samples: int
) -> Float[Array, "*rows K"]:
    """What each learned token counts, so that the loss is sum(weight x nll) / sum(weight).

    Under `tokens` every token counts 1; under group means, 1 / tokens of its group. The sum of the
    weights is the number of learned tokens, or of groups that learn anything.
    """
    learned = learned_sample >= 0
    if loss == "tokens":
        return learned.astype(jnp.float32)
    size = loss.mean_over_groups_of
    group = jnp.where(learned, learned_sample // size, 0)
    counts = jnp.zeros(-(-samples // size)).at[group].add(learned.astype(jnp.float32))
    return jnp.where(learned, 1.0 / jnp.maximum(counts, 1.0)[group], 0.0)


@jax.named_scope("loss")
def weighted_nll(
    model: Llava,
    hidden: Float[Array, "B T D"],
    batch: Batch,
    weights: Float[Array, "B K"],
    rows_per_device: int,
) -> Float[Array, ""]:
    """The sum of weight x -log p(target) over learned positions.

    Scores are made a few positions at a time and made again in the backward pass, so that no
    `[tokens, vocabulary]` array ever exists.
    """
    index = jnp.maximum(batch.learned_index, 0)
    learned = gather_rows(hidden, index)
    targets = jnp.take_along_axis(batch.targets, index, axis=1)
    vocabulary = model.config.llm.vocab_size
    chunk = max(1, LOGITS_IN_FLIGHT // (rows_per_device * vocabulary))

    @jax.checkpoint
    def nll(
        hidden: Float[Array, "B C D"], targets: Int[Array, "B C"], weights: Float[Array, "B C"]
    ) -> Float[Array, ""]:
        # Each device keeps the scores of its own rows and words, and their gradients: where these
        # are fewer bytes than the head, XLA would rather gather them than the head.
        hidden = shard(hidden, "batch", None, None)
        scores = shard(model.logits(hidden), "batch", None, "vocab").astype(jnp.float32)
        chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        # An empty slot's value is dropped, not multiplied by its weight 0: it could be NaN.
        loss = jax.nn.logsumexp(scores, axis=-1) - chosen
        return jnp.sum(jnp.where(weights > 0, weights * loss, 0.0))

    if chunk >= index.shape[1]:
        return nll(learned, targets, weights)

    def pieces(x: Shaped[Array, "B K ..."]) -> Shaped[Array, "C B chunk ..."]:
        padding = [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def add(total: Float[Array, ""], item: Any) -> tuple[Float[Array, ""], None]:
        return total + nll(*item), None

    return jax.lax.scan(add, jnp.zeros(()), tuple(map(pieces, (learned, targets, weights))))[0]


def added(one: Callable[[Any], Any], items: Any, zeros: Any) -> Any:
    """The sum of what `one` gives over the micro-batches that lead all arrays of `items`."""
    if jax.tree.leaves(items)[0].shape[0] == 1:
        return one(jax.tree.map(lambda x: x[0], items))

    def add(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(item)), None

    return jax.lax.scan(add, zeros, items)[0]


@jax.named_scope("update")
def guarded_update(
    optimizer: AdamW,
    state: TrainState,
    loss: Float[Array, ""],
    gradients: Params,
    spike: anomaly.SpikeConfig | None,
) -> tuple[TrainState, Metrics]:
    """The state after an update, or to the last bit the one before if the numbers are bad."""
    norm, limit = optax.tree.norm(gradients), anomaly.limits(state.history, spike)
    # What goes in is looked at, not what comes out: new weights would have to be kept beside the
    # old ones until they are checked.
    whole = anomaly.all_finite((state.trainable, state.optimizer))
    bad = anomaly.verdict(loss, norm, whole, limit)
    good = bad == anomaly.GOOD
    trainable, moments, rates = optimizer.update(
        gradients, norm, state.optimizer, state.trainable, good
    )
    remembered = anomaly.remembered(state.history, loss, norm)
    history = anomaly.only_if(good, remembered, state.history)
    metrics = {"loss": loss, "grad_norm": norm, "bad": bad, **rates}
    metrics |= {f"limit/{name}": value for name, value in limit.items()}
    return TrainState(trainable, moments, history), metrics


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: AdamW,
    loss: Loss,
    *,
    samples: int,
    rows_per_device: int,
    dtype: Any,
    remat: Remat,
    kernel: Kernel = "xla",
    dropout_seed: int | None = None,
    spike: anomaly.SpikeConfig | None = None,
    narrow: Any | None = None,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """The step: (state, frozen weights, batch) -> (state, metrics).

    Every array of the batch is `[A, rows, ...]`: A micro-batches whose gradients are added in
    float32 before one update. Only `state.trainable` is differentiated. A step with bad numbers
    gives back the state that it got; the metric `bad` says what it was.

    Args:
        graphdef: the model's structure.
        optimizer: what turns gradients into an update.
        loss: how tokens are weighed.
        samples: the most samples that one step holds.
        rows_per_device: rows of one micro-batch on one device.
        dtype: in which the model computes.
        remat: what the backward pass finds in memory.
        kernel: what computes the decoder's attention.
        dropout_seed: what masks follow from, with the count of updates; None = nothing is dropped.
        spike: what is too large to be learned from; None if nothing finite is.
        narrow: as for `value_and_gradients`.
    """

    def micro_loss(
        trainable: Params, frozen: Params, item: tuple[Batch, Array, dropout.Draw | None]
    ) -> Float[Array, ""]:
        micro, weights, draw = item
        model = merge(graphdef, {**frozen, **trainable})
        with dropout.masks(draw):
            hidden = model(micro, dtype=dtype, remat=remat, kernel=kernel)
        return weighted_nll(model, hidden, micro, weights, rows_per_device)

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = loss_weights(batch.learned_sample, loss, samples)
        draws = None
        if dropout_seed is not None:
            draws = dropout.draws(dropout_seed, state.optimizer.count, *weights.shape[:2])

        def one(item: Any) -> Any:
            return value_and_gradients(micro_loss, state.trainable, narrow, frozen, item)

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), state.trainable))
        total = added(one, (batch, weights, draws), zeros)
        weight = jnp.maximum(jnp.sum(weights), 1.0)
        value, gradients = jax.tree.map(lambda x: x.astype(jnp.float32) / weight, total)
        state, metrics = guarded_update(optimizer, state, value, gradients, spike)
        return state, metrics | {"learned_tokens": jnp.sum(batch.learned_sample >= 0)}

    return step


def make_evaluate_step(
    graphdef: nnx.GraphDef, *, rows_per_device: int, dtype: Any, kernel: Kernel = "xla"
) -> Callable[[Params, Params, Batch], tuple[Float[Array, ""], Int[Array, ""]]]:
    """The held-out step: (trainable, frozen, batch [rows, ...]) -> (sum of nll, learned tokens)."""

    def step(
        trainable: Params, frozen: Params, batch: Batch
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        model = merge(graphdef, {**frozen, **trainable})
        weights = loss_weights(batch.learned_sample, "tokens", 0)
        hidden = model(batch, dtype=dtype, kernel=kernel)
        total = weighted_nll(model, hidden, batch, weights, rows_per_device)
        return total, jnp.sum(batch.learned_sample >= 0)

    return step
