"""Schedules and groups against transformers, torch and arithmetic."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from astrollava_jax.training.optimizer import (
    AdamW,
    Constant,
    Cosine,
    Group,
    Linear,
    OptimizerConfig,
)

TRUE = jnp.array(True)


@pytest.mark.parametrize(
    "schedule, theirs",
    [
        (Cosine(warmup_fraction=0.03), get_cosine_schedule_with_warmup),
        (Linear(warmup_fraction=0.03), get_linear_schedule_with_warmup),
    ],
    ids=["cosine", "linear"],
)
def test_schedules_equal_transformers(schedule, theirs):
    total, warmup = 233, 7  # ceil(0.03 x 233)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = theirs(optimizer, warmup, total)
    expected = []
    for _ in range(total):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = schedule.build(1e-3, total)(jnp.arange(total))
    assert ours[0] == 0
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-10)


def test_cosine_ends_at_its_fraction_and_constant_stays():
    rate = Cosine(warmup_fraction=0.1, final_fraction=0.02).build(1.0, 100)
    np.testing.assert_allclose(rate(jnp.array([10, 55, 100])), [1.0, 0.51, 0.02], rtol=1e-6)
    rate = Constant(warmup_fraction=0.1).build(2.0, 100)
    np.testing.assert_allclose(rate(jnp.array([0, 5, 10, 99])), [0.0, 1.0, 2.0, 2.0])


def test_groups_have_their_own_rate_and_decay_acts_on_kernels_alone():
    config = OptimizerConfig(
        groups=(
            Group(name="projector", params="projector/.*", peak_lr=1e-2),
            Group(name="llm", params="llm/.*", peak_lr=1e-3, weight_decay=0.5),
        ),
        frozen=("vision/.*",),
        weight_decay=0.1,
        schedule=Constant(),
    )
    shapes = {
        "projector/kernel": (3, 2),
        "projector/bias": (2,),
        "llm/layers/norm/scale": (4, 2),  # stacked: two-dimensional, and still no kernel
        "llm/embed/embedding": (5, 2),
    }
    rng = np.random.default_rng(0)
    start = {a: rng.normal(size=s).astype(np.float32) for a, s in shapes.items()}
    gradients = {a: rng.normal(size=s).astype(np.float32) for a, s in shapes.items()}
    fates = config.fates([*shapes, "vision/kernel"])
    assert fates["vision/kernel"] == "frozen"
    optimizer = AdamW(config, fates, 10)
    ours = {a: jnp.asarray(x) for a, x in start.items()}
    state = optimizer.init(ours)
    tensors = {a: torch.nn.Parameter(torch.tensor(x)) for a, x in start.items()}
    rates = {"projector": (1e-2, 0.1), "llm": (1e-3, 0.5)}
    theirs = torch.optim.AdamW(
        [
            {
                "params": [tensor],
                "lr": rates[a.split("/")[0]][0],
                "weight_decay": rates[a.split("/")[0]][1] * a.endswith(("kernel", "embedding")),
            }
            for a, tensor in tensors.items()
        ]
    )
    for _ in range(3):
        given = {a: jnp.asarray(g) for a, g in gradients.items()}
        ours, state, _ = optimizer.update(given, optax.tree.norm(given), state, ours, TRUE)
        for address, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[address])
        theirs.step()
    for address, tensor in tensors.items():
        np.testing.assert_allclose(ours[address], tensor.detach().numpy(), rtol=2e-6, atol=1e-7)


def test_clipping_is_global_over_all_groups():
    config = OptimizerConfig(
        groups=(Group(name="a", params="a", peak_lr=1.0), Group(name="b", params="b", peak_lr=1.0)),
        clip_norm=1.0,
        schedule=Constant(),
        betas=(0.0, 0.0),
        eps=1.0,
    )
    optimizer = AdamW(config, config.fates(["a", "b"]), 10)
    zero = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    norm = optax.tree.norm(gradients)
    assert norm == 5.0
    moved, _, _ = optimizer.update(gradients, norm, optimizer.init(zero), zero, TRUE)
    # With betas 0 the step is g / (|g| + 1), for the clipped g = 3/5 and 4/5.
    np.testing.assert_allclose([moved["a"][0], moved["b"][0]], [-0.375, -0.8 / 1.8], rtol=1e-5)


def test_what_does_not_decay_is_not_multiplied_by_its_decay():
    config = OptimizerConfig(
        groups=(Group(name="all", params=".*", peak_lr=1e-2),), schedule=Constant()
    )
    optimizer = AdamW(config, {"kernel": "all"}, 10)
    weight = np.array([np.inf, 1.0], np.float32)  # no number times 0 would be NaN
    theirs = torch.nn.Parameter(torch.tensor(weight))
    theirs.grad = torch.ones(2)
    torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0).step()
    trainable, ones = {"kernel": jnp.array(weight)}, {"kernel": jnp.ones(2)}
    state = optimizer.init(trainable)
    updated, *_ = optimizer.update(ones, optax.tree.norm(ones), state, trainable, TRUE)
    np.testing.assert_allclose(updated["kernel"], theirs.detach().numpy(), rtol=1e-6)
