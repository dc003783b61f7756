"""What XLA makes of the step, before anything runs: which collectives, how large."""

import math
from pathlib import Path

from astrollava_jax import config
from astrollava_jax.data.rows import RowShape
from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.planning.hlo import collectives
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.stage import abstract_arguments, build, describe

RECIPE = Path(__file__).parents[2] / "configs" / "stage1_align.yaml"
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


def test_scores_stay_where_they_are_and_nothing_frozen_is_reduced():
    """All scores are fewer bytes than the head here, so that XLA would gather them if it could."""
    run = config.load(RunConfig, str(RECIPE))
    mesh = run.mesh.build()
    stage = build(run, describe(run, MODEL), mesh, rows=ROWS, samples=ROWS, updates=10)
    shape = RowShape(64, LEARNED, 1)
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
