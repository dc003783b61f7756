"""Whole runs with bad numbers in them equal runs from which their data was left out by hand."""

import itertools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import spoiled
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from small_run import STEPS, arrays

from astrollava_jax.cli.main import COMPLETE, MISTAKE, main
from astrollava_jax.run import train as training
from astrollava_jax.training.metrics import read_log

NONE: tuple[int, ...] = ()


@pytest.fixture(scope="module", autouse=True)
def broken_normalisation(quickly_compiled):
    """All runs here, spoiled or not, are the same compiled step."""
    with pytest.MonkeyPatch.context() as patch:
        spoiled.break_normalisation(patch)
        yield


@pytest.fixture
def start(sky, tmp_path, monkeypatch):
    """Runs stage 1 with the pictures of some steps spoiled; gives the exit code and the folder."""
    give = training.deliveries

    def run(*options: str, steps=NONE, every: int = 3):
        def deliveries(data, stage, first):
            for position, delivery in enumerate(give(data, stage, first), first):
                batch = delivery.batch
                if position in steps:
                    pictures = jnp.full_like(batch.images, spoiled.COLOUR)
                    delivery = replaced(delivery, batch._replace(images=pictures))
                yield delivery

        monkeypatch.setattr(training, "deliveries", deliveries)
        out = tmp_path / "run"
        file = small_run.run_file(sky, 1, small_run.fresh_projector(sky / "base"), out)
        options = ("--evaluate", "null", "--checkpoint.every_steps", str(every), *options)
        return main(["train", file, *options]), out

    return run


def replaced(delivery, batch):
    return type(delivery)(**(vars(delivery) | {"batch": batch}))


@pytest.fixture(scope="module")
def by_hand(sky, tmp_path_factory):
    """The state after some steps alone, by the plainest loop."""
    found: dict[tuple[int, ...], dict] = {}

    def run(*wanted: int):
        if wanted in found:
            return found[wanted]

        def loop(step, state, frozen, source, progress, *_):
            for position, delivery in enumerate(source):
                if position in wanted:
                    state, _ = step(state, frozen, delivery.batch)
            parts = {"optimizer": state.optimizer._asdict(), "history": state.history._asdict()}
            found[wanted] = small_run.by_name({"trainable": state.trainable, **parts})
            return state, progress

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "run_loop", loop)
            out = tmp_path_factory.mktemp("hand") / "run"
            init = small_run.fresh_projector(sky / "base")
            assert main(["train", small_run.run_file(sky, 1, init, out), "--evaluate", "null"]) == 0
        return found[wanted]

    return run


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def log(out) -> list[dict]:
    """The log, which must be JSON as others read it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    return read_log(str(out / "log.jsonl"))


def held(out, step: int) -> dict[str, int]:
    """The progress in a checkpoint."""
    path = out / "checkpoints" / str(step)
    names = ocp.checkpointables_metadata(path).metadata["progress"]
    return ocp.load_checkpointables(path, {"progress": dict.fromkeys(names, 0)})["progress"]


def test_a_bad_batch_leaves_no_trace_but_in_the_log(start, by_hand, capsys):
    code, out = start(steps=(2, 5))
    assert code == COMPLETE
    assert_same_bits(arrays(out, 8), by_hand(0, 1, 3, 4, 6, 7))
    assert held(out, 8) == dict(step=8, position=8, updates=6, skipped=0, bad=2, bad_in_row=0)
    lines = log(out)
    assert [facts["bad_steps"] for facts in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [facts["step"] for facts in lines if "bad" in facts] == [3, 6]
    bad = lines[2]["bad"]
    assert np.isnan(lines[2]["loss"]) and np.isnan(bad["loss"]) and "not finite" in bad["why"]
    # An epoch is sixty records in steps of 24: the third holds what is left.
    assert len(bad["records"]) == len(set(bad["records"])) == 12
    told = capsys.readouterr().out
    assert "BAD NUMBERS in step 3, from which nothing was learned" in told
    assert bad["records"][0] in told and "2 more, all in log.jsonl" in told
    assert "complete, 8 steps, 2 of them bad" in told


def test_too_many_in_a_row_lead_back_and_past_their_data(start, by_hand, capsys):
    """Checkpoint 3 is gone back to after step 6: what step 4 learned is lost, its data passed."""
    code, out = start("--bad_numbers.max_in_row", "2", steps=(4, 5))
    assert code == COMPLETE
    assert_same_bits(arrays(out, 8), by_hand(0, 1, 2, 6, 7))
    assert held(out, 8) == dict(step=8, position=8, updates=5, skipped=0, bad=2, bad_in_row=0)
    assert held(out, 6) == dict(step=6, position=6, updates=3, skipped=0, bad=2, bad_in_row=2)
    assert [facts["step"] for facts in log(out)] == list(range(1, STEPS + 1))
    assert [f["rolled_back_to"] for f in log(out) if "rolled_back_to" in f] == [3]
    assert "ROLLED BACK to checkpoint 3, of 3 updates (4 before)" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_a_broken_state_leads_back_at_once(part, start, by_hand, monkeypatch):
    """One number of the state becomes NaN before the sixth step."""
    run_loop = training.run_loop

    def loop(step, *arguments):
        calls = itertools.count()

        def sometimes_broken(state, frozen, batch):
            if next(calls) == 5:
                tree = {"weights": state.trainable, "moments": state.optimizer.nu}[part]
                address = "projector/layers_0/kernel"
                tree[address] = tree[address].at[1, 1].set(jnp.nan)
            return step(state, frozen, batch)

        return run_loop(sometimes_broken, *arguments)

    monkeypatch.setattr(training, "run_loop", loop)
    code, out = start()
    assert code == COMPLETE
    assert_same_bits(arrays(out, 8), by_hand(0, 1, 2, 6, 7))
    (bad,) = [facts for facts in log(out) if "bad" in facts]
    assert bad["step"] == 6 and bad["rolled_back_to"] == 3
    assert bad["bad"]["why"] == "weights or moments that are not finite"


def test_when_going_back_does_not_help_it_goes_further_back(start, by_hand):
    """Back to 4 after step 6, and to 2 after step 8, where the data ends: that state is kept."""
    code, out = start("--bad_numbers.max_in_row", "2", steps=(4, 5, 6, 7), every=2)
    assert code == COMPLETE
    assert [f["rolled_back_to"] for f in log(out) if "rolled_back_to" in f] == [4, 2]
    assert_same_bits(arrays(out, 8), by_hand(0, 1))
    assert held(out, 8) == dict(step=8, position=8, updates=2, skipped=0, bad=4, bad_in_row=4)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert {"2", "8"} <= set(kept) and not {"4", "6"} & set(kept)


def test_without_a_way_back_the_run_ends_and_says_what_to_do(start, capsys):
    code, out = start("--bad_numbers.max_in_row", "2", steps=(0, 1))
    assert code == MISTAKE
    told = capsys.readouterr().err
    records = log(out)[1]["bad"]["records"]
    assert "step 2: loss nan" in told and "No checkpoint is left to go back to" in told
    assert ", ".join(records[:10]) in told and "lower peak_lr" in told and "Traceback" not in told


def test_spikes_are_looked_for_as_the_run_says(start):
    """With a window of 2 and a tiny sigma, whatever is above the mean of two steps is a spike."""
    code, out = start("--bad_numbers.spike", "{window: 2, sigma: 0.001, grad_norm_sigma: 0.001}")
    assert code == COMPLETE
    spikes = [facts for facts in log(out) if "bad" in facts]
    assert spikes and all("spike: " in facts["bad"]["why"] for facts in spikes)
    good: list[tuple[float, float]] = []
    for facts in log(out):
        pair, window = (facts["loss"], facts["grad_norm"]), np.array(good[-2:])
        above = np.array(pair) > window.mean(0) + 0.001 * window.std(0) if len(good) > 1 else False
        assert ("bad" in facts) == bool(np.any(above)), facts["step"]
        good += [] if "bad" in facts else [pair]
    assert held(out, 8)["updates"] == len(good)


@pytest.mark.parametrize("kept", ["bfloat16", "nf4"])
def test_a_base_with_numbers_that_are_none_is_refused_by_name_before_a_run_begins(
    kept, sky, tmp_path, capsys
):
    shutil.copytree(sky / "base", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    for name in ("language_model.model.layers.1.mlp.up_proj.weight",
                 "vision_tower.vision_model.embeddings.class_embedding"):  # fmt: skip
        tensors[name].reshape(-1)[5] = np.inf
    save_file(tensors, path, metadata={"format": "pt"})
    file = small_run.run_file(sky, 1, small_run.fresh_projector(path.parent), tmp_path / "run")
    assert main(["train", file, "--precision.frozen", kept]) == MISTAKE
    told = capsys.readouterr().err
    assert "these parameters hold numbers that are not finite" in told
    assert f"llm/layers/mlp/up_proj/kernel, layer 1: 1 of its numbers, in {path}\n" in told
    assert f"vision/class_token/embedding: 1 of its numbers, in {path}\n" in told
    assert len(told.splitlines()) == 3 and not (tmp_path / "run" / "base.json").exists()
