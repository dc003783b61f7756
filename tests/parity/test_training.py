"""Fifty steps of each stage against a PyTorch loop: same weights, same batches, same losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
from tiny_llava import IMAGE_ID
from transformers import get_cosine_schedule_with_warmup

from astrollava_jax.batch import Batch
from astrollava_jax.params import split
from astrollava_jax.training.optimizer import AdamW, Cosine, Group, OptimizerConfig
from astrollava_jax.training.state import TrainState
from astrollava_jax.training.step import make_train_step

STEPS, ROWS, LENGTH, PATCHES, START = 50, 4, 16, 4, 7
STAGES = {
    "stage 1": (["projector"], 1e-3),
    "stage 2": (["projector", "llm"], 2e-4),
}


def batches():
    """Random words around one picture; the last words of each row are learned."""
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        tokens = rng.integers(3, 30, (ROWS, LENGTH)).astype(np.int32)
        tokens[:, 2 : 2 + PATCHES] = IMAGE_ID
        feature_index = np.full((ROWS, LENGTH), -1, np.int32)
        feature_index[:, 2 : 2 + PATCHES] = np.arange(PATCHES)
        counts = rng.integers(1, LENGTH - START, ROWS)
        slots = np.arange(LENGTH - START)
        learned = np.where(slots < counts[:, None], START + slots, -1).astype(np.int32)
        learned = np.where(learned < LENGTH - 1, learned, -1).astype(np.int32)
        sample = np.where(learned >= 0, np.arange(ROWS)[:, None], -1).astype(np.int32)
        yield Batch(
            tokens=tokens,
            targets=np.roll(tokens, -1, axis=1),
            learned_index=learned,
            learned_sample=sample,
            segment_ids=np.ones((ROWS, LENGTH), np.int32),
            positions=np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
            images=rng.integers(0, 256, (ROWS, 1, 28, 28, 3)).astype(np.uint8),
            feature_index=feature_index,
        )


def torch_losses(parts, rate, clip, decay):
    model = tiny_llava.torch_model()
    names = {"projector": "multi_modal_projector", "llm": ("language_model", "lm_head")}
    wanted = tuple(np.concatenate([np.atleast_1d(names[part]) for part in parts]))
    decayed, plain = [], []
    for name, value in model.named_parameters():
        value.requires_grad_(any(word in name for word in wanted))
        if value.requires_grad:
            (plain if "norm" in name or name.endswith("bias") else decayed).append(value)
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, STEPS)  # ceil(0.03 x 50) = 2
    config, losses = tiny_llava.our_config().vision, []
    for batch in batches():
        images = batch.images[:, 0].astype(np.float32) / 255
        images = (images - np.array(config.pixel_mean)) / np.array(config.pixel_std)
        labels = np.full(batch.tokens.shape, -100)
        for row, learned in enumerate(batch.learned_index):
            learned = learned[learned >= 0]
            labels[row, learned + 1] = batch.targets[row, learned]
        loss = model(
            input_ids=torch.tensor(batch.tokens, dtype=torch.long),
            pixel_values=torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32)),
            attention_mask=torch.ones(batch.tokens.shape, dtype=torch.long),
            labels=torch.tensor(labels),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(decayed + plain, clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def our_losses(parts, rate, clip, decay, accumulate=1):
    graphdef, _ = split(tiny_llava.our_config().abstract())
    numbers = tiny_llava.by_address(dict(tiny_llava.torch_model().named_parameters()))
    params = {address: jnp.asarray(value) for address, value in numbers.items()}
    config = OptimizerConfig(
        groups=tuple(Group(name=part, params=f"{part}/.*", peak_lr=rate) for part in parts),
        frozen=tuple(f"{part}/.*" for part in ("vision", "projector", "llm") if part not in parts),
        weight_decay=decay,
        clip_norm=clip,
        schedule=Cosine(warmup_fraction=0.03),
    )
    fates = config.fates(params)
    trainable = {a: x for a, x in params.items() if fates[a] != "frozen"}
    frozen = {a: x for a, x in params.items() if fates[a] == "frozen"}
    optimizer = AdamW(config, fates, STEPS)
    state = TrainState(trainable, optimizer.init(trainable))
    step = jax.jit(
        make_train_step(
            graphdef, optimizer, "tokens",
            samples=ROWS, rows_per_device=ROWS, dtype=jnp.float32, remat="none",
        ),
        donate_argnums=0,
    )  # fmt: skip
    losses = []
    with jax.default_matmul_precision("highest"):
        for batch in batches():
            batch = batch.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]))
            state, metrics = step(state, frozen, batch)
            losses.append(float(metrics["loss"]))
    for address, value in frozen.items():
        assert np.array_equal(value, numbers[address]), f"{address} moved"
    assert set(state.optimizer.mu) == set(state.optimizer.nu) == set(state.trainable)
    return losses


@pytest.mark.parametrize("clip, decay", [(None, 0.0), (0.5, 0.1)], ids=["plain", "clip and decay"])
@pytest.mark.parametrize("stage", STAGES)
def test_fifty_steps(stage, clip, decay):
    parts, rate = STAGES[stage]
    theirs = torch_losses(parts, rate, clip, decay)
    ours = our_losses(parts, rate, clip, decay)
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_accumulation_is_the_same_step():
    whole = our_losses(["projector", "llm"], 2e-4, 0.5, 0.0)
    parts = our_losses(["projector", "llm"], 2e-4, 0.5, 0.0, accumulate=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
