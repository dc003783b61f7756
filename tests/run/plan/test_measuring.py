"""`plan --topology local --measure N`: the planned steps are taken, told and timed."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from astrollava_jax import config
from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.run import measuring, planning
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.initial import dtypes_of, make_random
from astrollava_jax.run.plan import Machine, uncompiled
from astrollava_jax.run.stage import Stage, abstract_params
from astrollava_jax.training.anomaly import GOOD, NOT_FINITE
from astrollava_jax.training.state import TrainState
from astrollava_jax.weights.outline import outline

ONE = Machine("one", jax.devices()[:1], None, None)
MARK = (3, 1, 3)
"""The shape of all stand-in weights, by which those that are alive are counted."""


@pytest.fixture
def argv(folder, monkeypatch) -> list[str]:
    """The command, for one device."""
    monkeypatch.setattr(planning, "machine", lambda name: ONE)
    mesh = ["--mesh", "{data: 1, fsdp: 1, tensor: 1, frozen: sharded}", "--rows-per-chip", "1"]
    return ["plan", str(folder / "run.yaml"), "--topology", "local", *mesh, "--measure", "2"]


def test_a_setting_is_timed_and_one_that_cannot_be_is_told(argv, capsys, monkeypatch):
    """Nothing is modelled: of the machine no table knows anything."""
    random = np.random.default_rng(0)

    def make(run: RunConfig, stage: Stage):  # as `make_random`, but without a compilation
        dtypes, shapes = dtypes_of(run, stage.model), stage.model.shapes
        return {
            a: jnp.asarray(random.normal(0, 0.1, x.shape), dtypes[a]) for a, x in shapes.items()
        }

    monkeypatch.setattr(measuring, "make_random", make)
    settings = ["--sweep", "mesh=fsdp", "attention=splash,xla", "remat=none"]
    assert main([*argv, "--json", *settings]) == 0
    said = capsys.readouterr()
    refused, found = (json.loads(line) for line in said.out.splitlines())
    assert refused["setting"] == "one chip, remat none, attention splash, options table"
    assert "splash" in refused["why"] and len(refused) == 2
    assert found["setting"] == "one chip, remat none, attention xla, options table"
    assert (found["chips"], found["rows"], found["samples"], found["tokens"]) == (1, 1, 2, 64)
    assert len(found["seconds"]) == 2 and found["step_seconds"] == np.mean(found["seconds"])
    assert found["samples_per_second"] == 2 / found["step_seconds"]
    assert found["tokens_per_second_per_chip"] == 64 / found["step_seconds"]
    assert found["mfu"] is None and found["peak_bytes"] > 0 and found["useful_flops"] > 0
    first, *_, last = found["losses"]
    assert len(found["losses"]) == 3 and last < first < 2 * np.log(64), "it learns the rows"
    assert "rows: assumed: 2 sample(s)" in said.err


@pytest.mark.slow
def test_the_run_as_it_is_takes_its_steps_on_all_devices_and_is_traced(folder, tmp_path, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--measure", "1"]
    assert main([*argv, "--json", "--trace", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["setting"], found["chips"], found["rows"]) == ("as it is", 8, 32)
    assert (found["samples"], found["tokens"], found["trace"]) == (64, 32 * 64, str(tmp_path))
    timed_and_first_and_traced = len(found["seconds"]), len(found["losses"])
    assert timed_and_first_and_traced == (1, 3), "a profiler takes its share of the step it traces"
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


class Program:
    """A stand-in for a compiled step: it says what it was told to, or fails."""

    def __init__(self, remat: str):
        self._remat, self._calls = remat, 0

    def lower(self, *_):
        return self

    def compile(self):
        if self._remat == "dots":
            raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel\nat 0x1")
        return self

    def __call__(self, state, *_):
        if self._remat == "mlp":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat 0x1")
        self._calls += 1
        if self._remat == "projections" and self._calls > 1:
            return state, {"loss": float("nan"), "bad": NOT_FINITE}
        return state, {"loss": self._calls, "bad": GOOD}

    def memory_analysis(self):
        gib = {"argument": 2, "temp": 1, "output": 1, "alias": 1}
        found = {f"{name}_size_in_bytes": size << 30 for name, size in gib.items()}
        return SimpleNamespace(**found, peak_memory_in_bytes=None)


@pytest.fixture
def alive(argv, monkeypatch) -> list[tuple[str, int]]:
    """Settings for which weights were made, and how many of earlier ones were there still."""
    found, prepare = [], uncompiled
    prepared: dict[Any, Any] = {}

    def stand_in(run: RunConfig, *args: Any, **options: Any):
        if run.mesh not in prepared:
            prepared[run.mesh] = prepare(run, *args, **options)
        made = prepared[run.mesh]
        stage = dataclasses.replace(made.stage, step=Program(run.remat))
        return dataclasses.replace(made, run=run, stage=stage)

    def make(run: RunConfig, stage: Stage):
        found.append((run.remat, sum(array.shape == MARK for array in jax.live_arrays())))
        return {address: jnp.zeros(MARK) for address in stage.model.shapes}

    monkeypatch.setattr(measuring, "uncompiled", stand_in)
    monkeypatch.setattr(measuring, "make_random", make)
    monkeypatch.setattr(Stage, "begin", lambda _, trainable: TrainState(trainable, None, None))
    return found


def test_what_fails_costs_its_own_weights_and_no_other_setting(
    argv, alive, tmp_path, capsys, monkeypatch
):
    """Two cannot be: `dots` is not compiled, and `mlp` fails with weights that it was given."""
    monkeypatch.setattr(jax.profiler, "trace", lambda folder: contextlib.nullcontext())
    argv = [*argv, "--trace", str(tmp_path), "--sweep", "mesh=fsdp", "attention=xla"]
    assert main([*argv, "remat=none,dots,full,mlp,attention"]) == 0
    lines = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == [
        f"one chip, remat {remat}, attention xla, options table"
        for remat in ("none", "dots", "full", "mlp", "attention")
    ]
    none, dots, full, mlp, attention = (told for _, told in lines)
    assert (dots, mlp) == ("INTERNAL: no such kernel", "RESOURCE_EXHAUSTED: Out of memory")
    for number, told in ((1, none), (3, full), (5, attention)):
        assert told.startswith("1 row(s) in 1 micro-batch(es), peak 3.00 GiB by the compiler, ")
        assert told.endswith(f", loss 1.0000 to 4.0000; trace in {tmp_path}/{number}")
        assert " ms (" in told and " samples/s, " in told and " tokens/s/chip, " in told
    assert alive == [("none", 0), ("attention", 0)]


def test_steps_of_bad_numbers_are_told(argv, alive, capsys):
    assert main([*argv, "--remat", "projections"]) == 0
    said = capsys.readouterr().out.strip()
    assert said.endswith("loss 1.0000 to not finite, BAD NUMBERS in 2 of 3 steps")
    assert main([*argv, "--remat", "projections", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["losses"] == [1.0, None, None] and facts["bad_steps"] == 2


def test_code_3_says_that_no_setting_could_be_run(argv, alive, capsys):
    with pytest.raises(SystemExit, match="3"):
        main([*argv, "--remat", "mlp"])
    assert capsys.readouterr().out == "as it is: RESOURCE_EXHAUSTED: Out of memory\n"


def test_weights_of_another_layout_are_made_when_the_earlier_are_gone(folder, alive, monkeypatch):
    monkeypatch.setattr(planning, "machine", lambda name: Machine("", jax.devices(), None, None))
    argv = ["plan", str(folder / "run.yaml"), "--topology", "local", "--measure", "1"]
    axes = ["mesh=fsdp,tensor2", "attention=xla", "remat=none"]
    assert main([*argv, "--rows-per-chip", "1", "--sweep", *axes]) == 0
    assert alive == [("none", 0), ("none", 0)]


def test_options_that_do_not_go_together_are_told_at_once(folder, capsys):
    argv = ["plan", str(folder / "run.yaml"), "--topology"]
    assert main([*argv, "v5e-4", "--measure", "0", "--estimate", "--rows-per-chip", "0"]) == MISTAKE
    said = capsys.readouterr().err
    assert "--rows-per-chip is 0, expected at least 1" in said
    assert "--measure is 0, expected at least 1 step" in said
    assert "on the devices of this machine, not on v5e-4: say --topology local" in said
    assert "--estimate: a time that is measured is not modelled" in said
    assert main([*argv, "local", "--trace", "there"]) == MISTAKE
    assert "--trace: only steps that are taken can be traced: add --measure N" in (
        capsys.readouterr().err
    )


def test_a_setting_of_the_run_itself_that_cannot_be_is_the_users_mistake(argv, capsys):
    assert main([*argv, "--attention", "splash"]) == MISTAKE
    assert "splash" in capsys.readouterr().err


QLORA = """
lora: {rank: 4, alpha: 8.0, targets: [llm/layers/mlp/up_proj]}
precision: {frozen: nf4}
optimizer:
  groups:
    - {name: adapters, params: ".*/lora_[ab]", peak_lr: 1e-3}
    - {name: rest, params: "(projector|llm)/(?!.*(lora_[ab]|up_proj/kernel)).*", peak_lr: 1e-3}
  frozen: ["vision/.*", llm/layers/mlp/up_proj/kernel]
  schedule: {type: constant}
"""


@pytest.mark.slow
def test_random_weights_are_kept_as_those_of_a_run_are(folder):
    """An adapter beside a kernel in nf4: dtypes, forms and shardings of what the step takes."""
    run = config.load(RunConfig, str(folder / "run.yaml"), yaml.safe_load(QLORA))
    eight = Machine("eight", jax.devices(), None, None)
    stage = uncompiled(run, eight, outline(str(folder / "hf"))).stage
    made, model = make_random(run, stage), stage.model
    frozen = abstract_params(stage, model.frozen, "bfloat16")
    expected = frozen | abstract_params(stage, model.trainable, "float32")
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    for found, like in zip(jax.tree.leaves(made), jax.tree.leaves(expected)):
        assert (found.shape, found.dtype, found.sharding) == (like.shape, like.dtype, like.sharding)
    stored = made["llm/layers/mlp/up_proj/kernel"]
    assert len(jax.tree.leaves(stored)) > 1, "numbers of four bits, and their scales"
    names = {address for address, array in made.items() if not isinstance(array, jax.Array)}
    assert names == {"llm/layers/mlp/up_proj/kernel"}
    constant = {a for a in set(made) - names if not np.std(np.asarray(made[a], np.float32))}
    assert all(a.rsplit("/", 1)[-1] in ("scale", "bias", "lora_b") for a in constant)
