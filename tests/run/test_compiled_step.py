"""What XLA makes of the step, before anything runs: which collectives, how large."""

import math
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from astrollava_jax import compiler, config
from astrollava_jax.data.rows import RowShape
from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.planning.hlo import collectives
from astrollava_jax.run import stage as stages
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.stage import abstract_arguments, build, describe
from astrollava_jax.training import step

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS, WIDTH, ROWS, LEARNED = 1016, 512, 8, 8
MODEL = LlavaConfig(
    vision=ClipConfig(
        image_size=28, patch_size=14, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4
    ),
    projector=MlpConfig(),
    llm=LlamaConfig(
        vocab_size=WORDS, embed_dim=WIDTH, mlp_dim=64, num_layers=5, num_heads=4, num_kv_heads=4,
        head_dim=16,
    ),
)  # fmt: skip


def built(recipe: str = "stage1_align", **changes: Any):
    run = config.load(RunConfig, str(CONFIGS / f"{recipe}.yaml"), {"remat": "full"} | changes)
    mesh = run.mesh.build()
    return run, build(run, describe(run, MODEL), mesh, rows=ROWS, samples=ROWS, updates=10)


def test_what_is_kept_is_decided_before_a_step_is_built():
    with pytest.raises(ValueError, match="remat: auto is decided before a stage is built"):
        built(remat="auto")


def test_scores_stay_where_they_are_and_nothing_frozen_is_reduced():
    """All scores are fewer bytes than the head here, so that XLA would gather them if it could."""
    run, stage = built()
    shape = RowShape(64, LEARNED, 1, 2)
    arguments = abstract_arguments(stage, run, shape, MODEL.image_facts, ROWS)
    with stage.active():
        text = stage.step.lower(*arguments).compile().as_text()
    found = collectives(text)
    assert found, "eight devices exchange something"
    scores = [one for one in found for _, dims in one.shapes if WORDS in dims and WIDTH not in dims]
    assert scores == []
    trained = sum(math.prod(array.shape) for array in arguments[0].trainable.values())
    reduced = [
        math.prod(dims) for one in found if one.kind == "all-reduce" for _, dims in one.shapes
    ]
    assert sum(size for size in reduced if size > 1) == trained


def test_a_kernel_that_the_device_does_not_have_is_refused():
    with pytest.raises(ValueError, match="attention: splash does not run on cpu; say auto"):
        built(attention="splash")
    assert built(attention="auto")[1].notes == ()


def test_the_compiler_hears_the_options_of_the_table_and_of_the_run(monkeypatch):
    def compiled(**changes: Any) -> None:
        run, stage = built(**changes)
        shape = RowShape(64, LEARNED, 1, 2)
        arguments = abstract_arguments(stage, run, shape, MODEL.image_facts, ROWS)
        with stage.active():
            stage.step.lower(*arguments).compile()  # pyright: ignore

    with pytest.raises(Exception, match="No such compile option: 'xla_of_the_run'"):
        compiled(compiler_options={"xla_of_the_run": 1})
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_of_the_table": 1})
    with pytest.raises(Exception, match="No such compile option: 'xla_of_the_table'"):
        compiled()


@pytest.mark.parametrize(
    ("platform", "compute", "expected"),
    [
        ("gpu", "bfloat16", "bfloat16"),
        ("gpu", "float32", "float32"),
        ("tpu", "bfloat16", "float32"),
        ("cpu", "bfloat16", "float32"),
    ],
)
def test_gradients_of_the_decoders_kernels_are_narrow_on_gpus_only(
    platform, compute, expected, monkeypatch
):
    """Traced in stage 2, where all of the decoder trains: what else trains has float32 ones."""
    given, found = stages.narrow_gradients, {}
    device = types.SimpleNamespace(platform=platform)
    monkeypatch.setattr(stages, "narrow_gradients", lambda run, _: given(run, device))
    real = step.value_and_gradients

    def watched(*args: Any) -> Any:
        value, gradients = real(*args)
        found.update({address: gradient.dtype for address, gradient in gradients.items()})
        return value, gradients

    monkeypatch.setattr(step, "value_and_gradients", watched)
    run, stage = built("stage2_instruct", precision={"compute": compute})
    arguments = abstract_arguments(stage, run, RowShape(64, LEARNED, 1, 2), MODEL.image_facts, ROWS)
    with stage.active():
        stage.step.trace(*arguments)  # pyright: ignore
    kernels = {a for a in found if a.startswith("llm/layers/") and a.endswith("/kernel")}
    assert len(kernels) == 7 and {found[address] for address in kernels} == {jnp.dtype(expected)}
    others = {found[address] for address in set(found) - kernels}
    assert others == {jnp.dtype("float32")}
