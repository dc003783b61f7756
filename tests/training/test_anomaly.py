"""Nothing is learned from bad numbers, to the last bit; what is bad is worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spoiled
import tiny_llava

from astrollava_jax.batch import Batch
from astrollava_jax.params import split
from astrollava_jax.training import anomaly
from astrollava_jax.training.optimizer import AdamW, Cosine, Group, OptimizerConfig
from astrollava_jax.training.state import TrainState
from astrollava_jax.training.step import make_train_step

SPIKE = anomaly.SpikeConfig(window=4, sigma=3.0, grad_norm_sigma=3.0)
MICRO, ROWS, LENGTH, PATCHES = 2, 2, 12, 4
UNUSED_WORD = 1


def batch(number: int, spoil: bool = False) -> Batch:
    """Two micro-batches of two rows: a picture, then words that are learned.

    A spoiled one has one bad picture, in the second micro-batch.
    """
    rng = np.random.default_rng(number)
    shape = (MICRO, ROWS, LENGTH)
    tokens = rng.integers(3, 30, shape).astype(np.int32)
    tokens[..., :PATCHES] = tiny_llava.IMAGE_ID
    features = np.full(shape, -1, np.int32)
    features[..., :PATCHES] = np.arange(PATCHES)
    learned = np.broadcast_to(np.arange(PATCHES, LENGTH - 1, dtype=np.int32), (MICRO, ROWS, 7))
    samples = np.arange(MICRO * ROWS, dtype=np.int32).reshape(MICRO, ROWS, 1)
    images = rng.integers(0, 200, (MICRO, ROWS, 1, 28, 28, 3)).astype(np.uint8)
    if spoil:
        images[1, 0] = spoiled.COLOUR
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=-1),
        learned_index=learned,
        learned_sample=np.broadcast_to(samples, learned.shape),
        segment_ids=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape),
        images=images,
        feature_index=features,
    ).map(jnp.asarray)


@pytest.fixture(scope="module")
def trained():
    """A compiled step in which a picture of one colour becomes NaN, its state and frozen weights.

    The state is given as a function: each step eats the one that it gets.
    """
    graphdef, shapes = split(tiny_llava.our_config().abstract())
    rng = np.random.default_rng(0)
    params = {a: rng.normal(0, 0.2, x.shape).astype(np.float32) for a, x in shapes.items()}
    config = OptimizerConfig(
        groups=(
            Group(name="projector", params="projector/.*", peak_lr=1e-3),
            Group(name="llm", params="llm/.*", peak_lr=2e-3),
        ),
        frozen=("vision/.*",),
        weight_decay=0.1,
        clip_norm=0.5,
        schedule=Cosine(warmup_fraction=0.1),
    )
    fates = config.fates(params)
    trainable = {a: x for a, x in params.items() if fates[a] != "frozen"}
    frozen = {a: jnp.array(x) for a, x in params.items() if fates[a] == "frozen"}
    optimizer = AdamW(config, fates, 20)
    step = make_train_step(
        graphdef, optimizer, "tokens", samples=MICRO * ROWS, rows_per_device=ROWS,
        dtype=jnp.float32, remat="none", spike=SPIKE,
    )  # fmt: skip

    @jax.jit
    def start() -> TrainState:
        fresh = {address: jnp.array(x) for address, x in trainable.items()}
        return TrainState(fresh, optimizer.init(fresh), anomaly.no_history(SPIKE))

    with pytest.MonkeyPatch.context() as patch:
        spoiled.break_normalisation(patch)
        compiled = jax.jit(step, donate_argnums=0).lower(start(), frozen, batch(0)).compile()
    return start, lambda state, given: compiled(state, frozen, given)


def copied(state: TrainState) -> TrainState:
    return jax.tree.map(np.array, state)


def assert_same_bits(found, expected) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(leaves, jax.tree.leaves(found)):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), path


def test_a_run_with_bad_pictures_is_the_run_without_them(trained):
    start, step = trained
    found, expected, bad = start(), start(), []
    for number in range(6):
        found, metrics = step(found, batch(number, spoil=number in (2, 3)))
        bad.append(int(metrics["bad"]))
        assert np.isfinite(metrics["loss"]) == (number not in (2, 3))
    for number in (0, 1, 4, 5):
        expected, _ = step(expected, batch(number))
    assert bad == [0, 0, anomaly.NOT_FINITE, anomaly.NOT_FINITE, 0, 0]
    assert found.optimizer.count == 4
    assert_same_bits(found, expected)


def test_only_good_steps_are_remembered_and_in_a_ring(trained):
    start, step = trained
    state, losses, norms = start(), [], []
    for number in range(6):
        state, metrics = step(state, batch(number, spoil=number == 1))
        if number != 1:
            losses.append(metrics["loss"])
            norms.append(metrics["grad_norm"])
    assert state.history is not None and state.history.count == 5
    np.testing.assert_array_equal(state.history.loss, [losses[4], *losses[1:4]])
    np.testing.assert_array_equal(state.history.grad_norm, [norms[4], *norms[1:4]])


CALM, WILD = [1.0, 1.1, 0.9, 1.2], [1.0, 900.0, 3.0, 700.0]


@pytest.mark.parametrize(
    "losses, norms, count, verdict",
    [
        (CALM, WILD, 4, anomaly.SPIKE),  # a loss near 4 is above 1.05 + 3 x 0.11
        (WILD, [1e-3, 2e-3, 1e-3, 2e-3], 4, anomaly.SPIKE),
        (WILD, WILD, 4, anomaly.GOOD),
        (CALM, WILD, 3, anomaly.GOOD),  # the window is not full
    ],
    ids=["loss", "gradient", "neither", "too early"],
)
def test_a_spike_is_what_stands_far_above_the_mean(losses, norms, count, verdict, trained):
    start, step = trained
    history = anomaly.History(jnp.int32(count), jnp.array(losses), jnp.array(norms))
    state = start()._replace(history=history)
    before = copied(state)
    after, metrics = step(state, batch(0))
    assert metrics["bad"] == verdict
    if verdict == anomaly.GOOD:
        assert after.optimizer.count == 1
    else:
        assert_same_bits(after, before)
    if count == 4:
        limits = [np.mean(x) + 3 * np.std(x) for x in (losses, norms)]
        found = [metrics["limit/loss"], metrics["limit/grad_norm"]]
        np.testing.assert_allclose(found, limits, rtol=1e-5)
        named = [
            name in anomaly.why({name: value.item() for name, value in metrics.items()})
            for name in ("loss", "norm of the gradients")
        ]
        above = [metrics["loss"] > limits[0], metrics["grad_norm"] > limits[1]]
        assert verdict == anomaly.GOOD or named == [bool(x) for x in above]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["weights", "mu", "nu"])
def test_a_state_that_is_not_finite_is_said_and_not_made_worse(where, value, trained):
    """The number stands where no loss sees it: in the row of a word that the batch lacks."""
    start, step = trained
    state = start()
    tree = {"weights": state.trainable, "mu": state.optimizer.mu, "nu": state.optimizer.nu}[where]
    address = "llm/embed/embedding"
    tree[address] = tree[address].at[UNUSED_WORD, 5].set(value)
    before = copied(state)
    after, metrics = step(state, batch(0))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert metrics["bad"] == anomaly.BROKEN
    assert_same_bits(after, before)


@pytest.mark.parametrize(
    "loss, norm, verdict",
    [
        (1.0, 1.0, anomaly.GOOD),
        (3.0, 4.0, anomaly.GOOD),
        (3.1, 1.0, anomaly.SPIKE),
        (1.0, 4.1, anomaly.SPIKE),
        (np.nan, 1.0, anomaly.NOT_FINITE),
        (1.0, np.nan, anomaly.NOT_FINITE),
        (1.0, np.inf, anomaly.NOT_FINITE),
        (-np.inf, 5.0, anomaly.NOT_FINITE),
    ],
)
def test_verdicts(loss, norm, verdict):
    limit = {"loss": jnp.float32(3.0), "grad_norm": jnp.float32(4.0)}
    numbers = jnp.float32(loss), jnp.float32(norm)
    assert anomaly.verdict(*numbers, jnp.array(True), limit) == verdict
    assert anomaly.verdict(*numbers, jnp.array(False), limit) == anomaly.BROKEN


def test_the_norm_of_the_gradients_is_judged_only_where_it_is_said():
    ring = jnp.array([1.0, 2.0, 1.0, 2.0])
    history = anomaly.History(jnp.int32(4), ring, ring)
    found = anomaly.limits(history, anomaly.SpikeConfig(window=4, sigma=3.0))
    assert found["loss"] == 1.5 + 3 * 0.5 and found["grad_norm"] == jnp.inf
