"""What is frozen costs nothing and stays what it was."""

import dataclasses
import math
import re

import jax
import pytest
import small_run
import tiny_directories as tiny
from orbax.checkpoint import v1 as ocp

from astrollava_jax.data.rows import RowShape
from astrollava_jax.run import stage as stages
from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_init
from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training.step import LOGITS_IN_FLIGHT

ROWS, SHAPE, WORDS = 8, RowShape(length=512, learned=512, images=4, samples=4), 32064
"""A step large enough that scores of all its learned positions would stand out."""

PARTS = {1: ("vision_tower.", "language_model."), 2: ("vision_tower.",)}
"""What a stage freezes, in the words of transformers 4."""


@pytest.mark.parametrize("stage", [1, 2])
def test_frozen_tensors_are_the_bits_of_the_base(stage, sky, stage1, stage2, tmp_path):
    convert({1: stage1, 2: stage2}[stage].out, tmp_path / "hf", "hf")
    base, found = tiny.read_all(sky / "base"), tiny.read_all(tmp_path / "hf")
    frozen = {name for name in base if name.startswith(PARTS[stage])}
    tiny.assert_same({n: found[n] for n in frozen}, {n: base[n] for n in frozen})
    still = {name for name in base if found[name].equal(base[name])}
    assert still == frozen


@pytest.mark.parametrize("stage", [1, 2])
def test_a_checkpoint_holds_no_frozen_address(stage, stage1, stage2):
    out = {1: stage1, 2: stage2}[stage].out
    held = ocp.checkpointables_metadata(out / "checkpoints" / "8").metadata
    trains = ("projector/",) if stage == 1 else ("projector/", "llm/")
    assert all(address.startswith(trains) for address in held["trainable"])
    assert set(held["trainable"]) == set(held["optimizer"]["mu"]) == set(held["optimizer"]["nu"])


@pytest.fixture(scope="module", params=[1, 2], ids=["stage 1", "stage 2"])
def compiled_step(request, stage1, stage2):
    """The step on one device at shapes that are never allocated, and what it takes."""
    run = small_run.read_run({1: stage1, 2: stage2}[request.param].file, remat="full")
    config = open_init(run.init).source.config
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, vocab_size=WORDS))
    stage = stages.build(
        run, stages.describe(run, config), MeshConfig().build(jax.devices()[:1]),
        rows=ROWS, samples=64, updates=8,
    )  # fmt: skip
    arguments = stages.abstract_arguments(stage, run, SHAPE, config.image_facts, ROWS)
    with stage.active():
        lowered = stage.step.lower(*arguments)
        return arguments, lowered, lowered.compile()


def size(tree) -> int:
    """The bytes of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_only_what_trains_is_donated_and_given_back(compiled_step):
    (state, frozen, batch), lowered, compiled = compiled_step
    donated, kept, read = (
        {leaf.donated for leaf in jax.tree.leaves(tree)} for tree in lowered.args_info[0]
    )
    assert (donated, kept, read) == ({True}, {False}, {False})
    assert jax.tree.structure(lowered.out_info[0]) == jax.tree.structure(state)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == size(state)
    # Besides the state: loss, tokens, norm and a rate per group, and a pointer to each array.
    assert 0 <= memory.output_size_in_bytes - size(state) < 1024
    unused = size({a: x for a, x in frozen.items() if a.startswith("vision/post_norm/")})
    unused += size(batch.lengths)  # for cuDNN alone
    arguments = size((state, frozen, batch)) - unused
    assert memory.argument_size_in_bytes == arguments


def test_no_scores_of_all_positions(compiled_step):
    compiled = compiled_step[2]
    shapes = set(re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text()))
    arrays = [tuple(map(int, shape.split(","))) for shape in shapes]
    scores = [math.prod(shape) for shape in arrays if WORDS in shape and 48 not in shape]
    assert scores and max(scores) <= LOGITS_IN_FLIGHT
    assert max(map(math.prod, arrays)) < ROWS * SHAPE.learned * WORDS
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * ROWS * SHAPE.learned * WORDS
