"""What a layer keeps for the backward pass where it is left open: what fits, by the compiler."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest

from astrollava_jax import files
from astrollava_jax.bench import random_llava
from astrollava_jax.bench.train_job import SHAPES
from astrollava_jax.run import keeping
from astrollava_jax.run.config import read_run
from astrollava_jax.run.keeping import decided
from astrollava_jax.run.stage import describe
from astrollava_jax.weights.outline import outline

GIB = 2**30
SHAPE = outline("llava-1.5-7b").config

COMPILED = {
    ("stage1_align", 8, 8): {"full": 20.8, "attention": 24.4, "dots_attention": 61.3},
    ("stage2_instruct", 6, 6): {"dots_attention": 125.1},
    ("stage2_instruct", 8, 8): {"full": 96.5},
    ("stage2_instruct", 16, 16): {"attention": 111.2},
    ("stage2_instruct", 8, 32): {"full": 121.2},
}
"""Recipe, rows at a time, rows of a step -> GiB of an H200 that XLA laid out, in 2048 positions."""


@pytest.fixture
def on(monkeypatch):
    """Lets the devices of every mesh be of another platform."""

    def change(platform: str, kernel: str) -> None:
        monkeypatch.setattr(keeping, "platform_of", lambda mesh: platform)
        monkeypatch.setattr(keeping, "attention_kernel", lambda *_: (kernel, None))
        narrow = jnp.bfloat16 if platform == "gpu" else None
        monkeypatch.setattr(keeping, "narrow_gradients", lambda run, device: narrow)

    return change


def gib(told: str) -> float:
    """What is told to be needed."""
    number, unit = told.split("some ")[1].split(" of ")[0].split()
    assert unit == "GiB"
    return float(number)


@pytest.mark.parametrize(("recipe", "at_once", "rows"), COMPILED)
def test_what_is_estimated_is_what_the_compiler_needed(recipe, at_once, rows, on):
    on("gpu", "cudnn_packed")
    run = read_run(f"configs/{recipe}.yaml", {"batch.rows_per_device": str(at_once)})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    for remat, gib in COMPILED[recipe, at_once, rows].items():
        needed = gib * 1.03 * GIB / keeping.USED["gpu"]
        chosen, told = decided(run, model, mesh, "sharded", rows, 3, int(needed))
        assert chosen.remat == remat and told is not None and f"remat: {remat}, by which" in told
        less = gib * 0.97 * GIB / keeping.USED["gpu"]
        chosen, _ = decided(run, model, mesh, "sharded", rows, 3, int(less))
        assert chosen.remat != remat or remat == "full"


def test_on_a_gpu_each_sample_of_a_row_costs_softmaxes_divisors_of_the_whole_row(on):
    """They are float32 [B x (samples + 1), N, T] by cuDNN: of many short samples they are much."""
    run = read_run("configs/stage1_align.yaml", {"batch.rows_per_device": "8"})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])

    def needed(platform: str, samples: int) -> float:
        """The GiB of what keeps most."""
        on(platform, "cudnn_packed")
        chosen, told = decided(run, model, mesh, "sharded", 8, samples, 999 * GIB)
        assert chosen.remat == "dots_attention" and told is not None
        return gib(told)

    per_sample = 8 * 32 * 2048 * 4 * 32 / GIB  # rows, heads, positions, bytes, layers
    assert needed("tpu", 100) == needed("tpu", 1)
    more = needed("gpu", 100) - needed("gpu", 1)
    assert more == pytest.approx(99 * per_sample, abs=0.02)


def test_where_the_tower_trains_no_more_is_kept_than_must_be():
    """It keeps all that its own backward pass needs, which nobody has counted here."""
    run = read_run("configs/astro_next_stage2.yaml", {"batch.rows_per_device": "1"})
    model = describe(run, outline("llava-v1.6-vicuna-7b").config)
    mesh = run.mesh.build(jax.devices()[:1])
    chosen, told = decided(run, model, mesh, "sharded", 1, 1, 999 * GIB)
    assert chosen.remat == "full" and told is not None and "tower" in told


def test_what_is_said_or_cannot_be_known_is_not_chosen(on):
    run = read_run("configs/stage1_align.yaml", {})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    said = dataclasses.replace(run, remat="dots")
    assert decided(said, model, mesh, "sharded", 8, 3, 100 * GIB) == (said, None)
    on("tpu", "splash")
    unknown, told = decided(run, model, mesh, "sharded", 8, 3, None)
    assert unknown.remat == "full" and told is None


def test_where_xla_computes_attention_no_more_is_kept_than_must_be(on):
    run = read_run("configs/stage1_align.yaml", {"attention": "xla"})
    model, mesh = describe(run, SHAPE), run.mesh.build(jax.devices()[:1])
    on("gpu", "xla")
    chosen, told = decided(run, model, mesh, "sharded", 8, 3, 999 * GIB)
    assert chosen.remat == "full" and told is not None and "attention by XLA" in told


@pytest.mark.parametrize(
    ("length", "rows", "figures"),
    [(1024, 4, {"full": 1.164, "dots_attention": 3.541}), (256, 16, {"full": 1.176})],
)
def test_a_processor_keeps_what_half_of_the_machines_memory_has_room_for(
    length, rows, figures, tmp_path, monkeypatch
):
    """By XLA's figures of a step of SmolLM2's decoder in float32, by blocks and by all scores."""
    said = {"batch.rows_per_device": str(rows), "batch.length": str(length)}
    said |= {"precision.compute": "float32", "precision.frozen": "float32"}
    run = read_run("configs/stage1_align.yaml", said)
    files.write_json(tmp_path / "config.json", random_llava.config(SHAPES["smollm2"].size))
    model = describe(run, outline(str(tmp_path)).config)
    mesh = run.mesh.build(jax.devices()[:1])
    for remat, compiled in figures.items():
        memory = int(2.2 * compiled * GIB)
        monkeypatch.setattr(keeping, "processor_memory", lambda memory=memory: memory)
        chosen, told = decided(run, model, mesh, "sharded", rows, 3, None)
        assert chosen.remat == remat and told is not None
        assert gib(told) == pytest.approx(compiled, rel=0.12)


def test_a_processors_memory_is_shared_by_all_devices_that_stand_for_it(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(keeping, "_LIMITS", (str(tmp_path / "none"),))
    assert keeping.processor_memory() == whole // jax.device_count()
    for told, expected in (("max\n", whole), ("8000000\n", 8_000_000)):
        (tmp_path / "limit").write_text(told)
        monkeypatch.setattr(keeping, "_LIMITS", (str(tmp_path / "limit"),))
        assert keeping.processor_memory() == expected // jax.device_count()


def test_what_devices_share_of_a_layer_is_kept_once():
    """Of four devices that compute a row together each keeps its own heads and middle."""
    run = read_run("configs/stage1_align.yaml", {"batch.rows_per_device": "8"})
    model = describe(run, SHAPE)
    whole, shared = (
        keeping.kept_numbers(model.config.llm, 1, tensor)["dots_attention"] for tensor in (1, 4)
    )
    of_all, of_each = 2 * 4096, 4 * 4096 + 2 * 32 + 2 * 11008  # inputs; heads, divisors, gate, up
    assert whole == of_all + of_each and shared == of_all + of_each // 4
