"""What a layer keeps for the backward pass where it is left open: what fits, by the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from astrollava_jax.run import keeping
from astrollava_jax.run.config import read_run
from astrollava_jax.run.keeping import GIB, decided
from astrollava_jax.run.stage import describe
from astrollava_jax.weights.outline import outline

SHAPE = outline("llava-1.5-7b").config

COMPILED = {
    ("stage1_align", 8, 8): {"full": 20.8, "attention": 24.4, "dots_attention": 61.3},
    ("stage2_instruct", 6, 6): {"dots_attention": 125.1},
    ("stage2_instruct", 8, 8): {"full": 96.5},
    ("stage2_instruct", 16, 16): {"attention": 111.2},
    ("stage2_instruct", 8, 32): {"full": 121.2},
}
"""Recipe, rows at a time, rows of a step -> GiB of an H200 that XLA laid out, in 2048 positions."""


@pytest.mark.parametrize(("recipe", "at_once", "rows"), COMPILED)
def test_what_is_estimated_is_what_the_compiler_needed(recipe, at_once, rows, monkeypatch):
    # As for a GPU, whose gradients of kernels are narrow.
    monkeypatch.setattr(keeping, "narrow_gradients", lambda run, device: jnp.bfloat16)
    run = read_run(f"configs/{recipe}.yaml", {"batch.rows_per_device": str(at_once)})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    for remat, gib in COMPILED[recipe, at_once, rows].items():
        needed = gib * 1.03 * GIB / keeping.USED_ELSEWHERE
        chosen, told = decided(run, model, mesh, "sharded", rows, 3, int(needed))
        assert chosen.remat == remat and told is not None and f"remat: {remat}, by which" in told
        less = gib * 0.97 * GIB / keeping.USED_ELSEWHERE
        chosen, _ = decided(run, model, mesh, "sharded", rows, 3, int(less))
        assert chosen.remat != remat or remat == "full"


def test_on_a_gpu_each_sample_of_a_row_costs_softmaxes_divisors_of_the_whole_row(monkeypatch):
    """They are float32 [B x (samples + 1), N, T] by cuDNN: of many short samples they are much."""
    of_platform = keeping.divisors
    run = read_run("configs/stage1_align.yaml", {"batch.rows_per_device": "8"})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])

    def needed(platform: str, samples: int) -> int:
        """The GiB of what keeps most."""
        monkeypatch.setattr(keeping, "divisors", lambda _, samples: of_platform(platform, samples))
        chosen, told = decided(run, model, mesh, "sharded", 8, samples, 999 * GIB)
        assert chosen.remat == "dots_attention" and told is not None
        return int(told.split("some ")[1].split(" of ")[0])

    per_sample = 8 * 32 * 2048 * 4 * 32 / GIB  # rows, heads, positions, bytes, layers
    assert needed("tpu", 100) == needed("tpu", 1)
    assert abs(needed("gpu", 100) - needed("tpu", 1) - 100 * per_sample) <= 1


def test_where_the_tower_trains_no_more_is_kept_than_must_be():
    """It keeps all that its own backward pass needs, which nobody has counted here."""
    run = read_run("configs/astro_next_stage2.yaml", {"batch.rows_per_device": "1"})
    model = describe(run, outline("llava-v1.6-vicuna-7b").config)
    mesh = run.mesh.build(jax.devices()[:1])
    chosen, told = decided(run, model, mesh, "sharded", 1, 1, 999 * GIB)
    assert chosen.remat == "full" and told is not None and "tower" in told


def test_what_is_said_or_cannot_be_known_is_not_chosen():
    run = read_run("configs/stage1_align.yaml", {})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    said = dataclasses.replace(run, remat="dots")
    assert decided(said, model, mesh, "sharded", 8, 3, 100 * GIB) == (said, None)
    unknown, told = decided(run, model, mesh, "sharded", 8, 3, None)
    assert unknown.remat == "full" and told is None


def test_where_xla_computes_attention_no_more_is_kept_than_must_be():
    run = read_run("configs/stage1_align.yaml", {"attention": "xla"})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    chosen, told = decided(run, model, mesh, "sharded", 8, 3, 999 * GIB)
    assert chosen.remat == "full" and told is not None and "attention by XLA" in told
