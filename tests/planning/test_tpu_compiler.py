"""The compiler for TPUs itself: LLaVA-1.5's widths, for chips that are not there.

Needs libtpu, no TPU: pip install 'astrollava_jax[plan]'.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from astrollava_jax.weights.published import MODELS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH, WORDS, PROJECTOR, GIB = 4096, 32_064, 20_979_712, 2**30

PEAK_OF_TWO_LAYERS = 1_192_999_936
"""Bytes, as jax 0.10.2 with libtpu 0.0.42.1 compiled it; compiled with less effort (O1)."""

# A stack of two layers would be unrolled: here it is scanned, as one of 32 is.
PROGRAM = """\
import sys
from astrollava_jax.models import layers
layers.SHORT = 0
from astrollava_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def plan(*argv: str, program: str | None = None, **environment: str) -> dict[str, Any]:
    """What the command tells."""
    return json.loads(told(*argv, program=program, **environment))


def told(*argv: str, program: str | None = None, **environment: str) -> str:
    """The same in its own words, of a process without the flags that the tests give XLA."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("XLA", "JAX"))}
    how = ["-m", "astrollava_jax"] if program is None else ["-c", program]
    done = subprocess.run(
        [sys.executable, *how, "plan", *argv, "--json"],
        capture_output=True, text=True, env=clean | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def arrays(said: dict[str, Any], *kinds: str) -> Iterator[tuple[int, ...]]:
    """The dims of what some kinds of collectives give; of all of them, without any."""
    for one in said["collectives"]:
        if not kinds or one["kind"] in kinds:
            for array in one["arrays"]:
                yield tuple(map(int, re.findall(r"\d+", array.split("[")[1])))


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> list[str]:
    """Stage 1 with two layers of full width, on four chips: the command line."""
    folder = tmp_path_factory.mktemp("two_layers")
    tree = dict(MODELS["llava-1.5-7b"])
    tree["text_config"] = {**tree["text_config"], "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(tree))
    recipe = str(CONFIGS / "stage1_align.yaml")
    argv = [recipe, "--topology", "v5e-4", "--shape", str(folder), "--rows-per-chip", "1"]
    return argv + ["--mesh", "{data: 1, fsdp: 4, frozen: sharded}", "--remat", "full"]


@pytest.fixture(scope="module")
def two_layers(stage1) -> dict[str, Any]:
    """A row on each chip, all in slices."""
    return plan(*stage1, program=PROGRAM, JAX_OPTIMIZATION_LEVEL="O1")


def test_the_state_is_updated_in_its_place(two_layers):
    held = two_layers["held_bytes"]
    assert held["trainable weights"] == pytest.approx(PROJECTOR * 4 / 4, rel=0.01)
    state = held["trainable weights"] + held["moments"]
    assert state <= two_layers["compiler"]["donated"] < 1.01 * state


def test_scores_stay_on_their_chip(two_layers):
    tokens = 4 * 2048
    assert two_layers["collectives"]
    for dims in arrays(two_layers):
        assert math.prod(dims) < tokens * WORDS
        assert WORDS not in dims or WIDTH in dims, f"scores, or their gradients: {dims}"


def test_nothing_frozen_is_reduced(two_layers):
    whole = sum(math.prod(dims) for dims in arrays(two_layers, "all-reduce") if dims)
    slices = sum(math.prod(dims) for dims in arrays(two_layers, "reduce-scatter"))
    # The compiler reduces a few rows besides, which it cuts off; a frozen kernel would be as much
    # again.
    assert PROJECTOR <= whole + 4 * slices < 1.15 * PROJECTOR


def test_memory_is_what_it_was(two_layers):
    assert two_layers["needed_bytes"] == pytest.approx(PEAK_OF_TWO_LAYERS, rel=0.1)


@pytest.mark.slow
def test_a_sweep_ranks_what_the_compiler_makes_of_its_settings(stage1):
    argv = [*stage1, "--sweep", "mesh=fsdp", "remat=attention"]
    lines = told(*argv, program=PROGRAM, JAX_OPTIMIZATION_LEVEL="O1").splitlines()
    plain, attention = map(json.loads, lines)
    assert [row["plain"] for row in (plain, attention)] == [True, False]
    assert plain["options"] == {} and attention["options"], "v5e has options of its own"
    assert {row["verdict"] for row in (plain, attention)} == {"fits"}
    kernels = [row["modelled"]["attention_kernel_seconds"] for row in (plain, attention)]
    assert kernels[0] > kernels[1] > 0, "the first of three kernels runs once, and not twice"
    times = [row["modelled"]["step_seconds"] for row in (plain, attention)]
    ratio = attention["modelled"]["time_per_token_of_plain"]
    assert ratio == pytest.approx(times[1] / times[0])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["stage1_align_v5e1", "stage2_qlora_v5e1"])
def test_a_7b_model_is_trained_on_one_chip_of_16_gb(recipe):
    said = plan(str(CONFIGS / f"{recipe}.yaml"), "--topology", "v5e-1")
    assert said["fits"] and said["collectives"] == []
    assert said["rows"]["length"] == 2048
    assert said["usable_bytes"] == int(15.75 * GIB)
