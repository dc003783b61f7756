"""Stage 2 with adapters: the base stays what it is, and the run resumes, merges and answers."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import small_run
import tiny_directories as tiny
from small_run import arrays, curve
from tiny_llava import assert_close

import astrollava_jax as al
from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.inference.model import Model
from astrollava_jax.run.arrays import Arrays
from astrollava_jax.run.convert import convert
from astrollava_jax.run.initial import fresh_addresses, with_own_adapters
from astrollava_jax.run.opening import open_any, read_params
from astrollava_jax.run.stage import describe
from astrollava_jax.run.train import train
from astrollava_jax.sharding import placements

pytestmark = pytest.mark.usefixtures("quickly_compiled")

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["llm/layers/.*_proj"]}
OPTIMIZER = {
    "groups": [
        {"name": "lora", "params": ".*/lora_[ab]", "peak_lr": 1e-2},
        {"name": "projector", "params": "projector/.*", "peak_lr": 1e-3},
    ],
    "frozen": ["vision/.*", "llm/(?!.*/lora_).*"],
    "schedule": {"type": "cosine", "warmup_fraction": 0.1},
}
TARGET = "llm/layers/mlp/up_proj"
QUESTION = ["<image>\nwhat color is the galaxy?", "how many stars are there?"]


class Done(NamedTuple):
    """A finished run."""

    file: str
    out: Path


def with_lora(file: str, frozen: str = "float32", lora: Any = LORA, **overrides: Any):
    precision = {"compute": "float32", "frozen": frozen}
    changes = {"lora": lora, "optimizer": OPTIMIZER, "precision": precision, **overrides}
    return small_run.read_run(file, **changes)


def file_of(sky: Path, begin: Path, out: Path) -> str:
    return small_run.run_file(sky, 2, small_run.model_at(begin), out)


@pytest.fixture(scope="module")
def done(sky, stage1) -> Done:
    """A whole run from the run directory of stage 1, whose projector trains on."""
    file = file_of(sky, stage1.out, sky / "lora")
    train(with_lora(file))
    return Done(file, sky / "lora")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)


def logits(model: Model) -> np.ndarray:
    return model.logits([picture(), None], QUESTION)


def own_model(done: Done) -> Model:
    """The model as it trained: adapters beside kernels, nothing merged."""
    run, opened = with_lora(done.file), open_any(str(done.out)).apart()
    described = describe(run, opened.source.config)
    places = placements(described.axes, described.shapes, run.mesh.build(jax.devices()[:1]))
    addresses = list(described.shapes)
    params = read_params(opened, addresses, places, dict.fromkeys(addresses, np.float32))
    return Model(
        name="own", config=described.config, graphdef=described.graphdef, params=params,
        tokenizer=opened.source.tokenizer, template=opened.template,
        image_mode=opened.image_mode, dtype="float32",
    )  # fmt: skip


def test_a_run_keeps_its_adapters_and_projector_and_names_its_base(done, sky):
    facts = json.loads((done.out / "base.json").read_text())
    assert {a.split("/")[0] for a in facts["trained"] if "/lora_" not in a} == {"projector"}
    assert len([a for a in facts["trained"] if "/lora_" in a]) == 2 * 7
    assert facts["inherited"] == [] and f"{TARGET}/kernel" in facts["frozen"]
    assert facts["init"]["model"] == str(sky / "base")
    held = {name.split("/", 1)[1] for name in arrays(done.out, 8) if name.startswith("train")}
    assert held == set(facts["trained"])


def test_the_loss_falls_and_both_halves_of_every_adapter_move(done):
    losses = [step[0] for step in curve(done.out)]
    assert losses[-1] < losses[0] - 1
    trained = arrays(done.out, 8)
    for name, array in trained.items():
        if name.startswith("trainable/") and "/lora_b" in name:
            assert all(layer.any() for layer in array), f"{name}: B began as zeros"
        if "mu/" in name:
            assert array.any(), name


def test_a_run_that_was_cut_goes_on_bit_for_bit(done, tmp_path):
    """From checkpoint 4, with the same masks of dropout."""
    shutil.copytree(done.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    train(with_lora(done.file, out=str(tmp_path / "run")))
    assert [line["attempt"] for line in lines(tmp_path / "run")] == [1] * 8 + [2] * 4
    assert curve(tmp_path / "run") == curve(done.out)
    expected, found = arrays(done.out, 8), arrays(tmp_path / "run", 8)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def lines(out: Path) -> list[dict]:
    log = (out / "log.jsonl").read_text().splitlines()
    return [facts for facts in map(json.loads, log) if "loss" in facts]


@pytest.mark.slow
def test_the_same_numbers_are_dropped_on_another_mesh_in_other_micro_batches(done, tmp_path):
    shutil.copytree(done.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    mesh, out = {"data": 2, "fsdp": 2, "tensor": 2}, str(tmp_path / "run")
    train(with_lora(done.file, out=out, mesh=mesh, batch__rows_per_device=1))
    assert [line["attempt"] for line in lines(tmp_path / "run")][-4:] == [2] * 4
    found, expected = np.array(curve(out)), np.array(curve(done.out))
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)


def test_dropout_is_felt(done, sky, stage1, tmp_path, monkeypatch):
    """The first step, when B is zero, is the same without it; the third is not."""
    small_run.on_devices(monkeypatch, 1)
    file, dry = file_of(sky, stage1.out, tmp_path / "run"), LORA | {"dropout": 0.0}
    train(with_lora(file, lora=dry, evaluate=None))
    found, expected = np.array(curve(tmp_path / "run")), np.array(curve(done.out))
    np.testing.assert_allclose(found[0, 0], expected[0, 0], rtol=1e-5)
    assert abs(found[2, 0] / expected[2, 0] - 1) > 1e-3


def test_what_answers_and_what_is_exported_is_what_trained(done, tmp_path):
    convert(done.out, tmp_path / "hf", "hf", merge=True, dtype="float32")
    expected = logits(own_model(done))
    assert_close(logits(al.load_model(str(done.out), "float32")), expected, "the run")
    assert_close(logits(al.load_model(str(tmp_path / "hf"), "float32")), expected, "the export")
    halfway = logits(al.load_model(str(done.out / "checkpoints" / "4"), "float32"))
    assert np.abs(halfway - expected).max() > 0.1


@pytest.mark.slow
def test_the_adapters_alone_answer_and_go_on_over_their_base(done, sky, tmp_path, monkeypatch):
    convert(done.out, tmp_path / "peft", "peft")
    expected = logits(own_model(done))
    found = logits(al.load_model(str(tmp_path / "peft"), "float32"))
    assert_close(found, expected, "the adapters over the base that they name")
    file = small_run.run_file(
        sky, 1, f"{{model: {tmp_path / 'peft'}, base: {sky / 'base'}}}", tmp_path / "run"
    )
    with monkeypatch.context() as patch:
        small_run.on_devices(patch, 1)
        train(small_run.read_run(file, steps=1, evaluate=None))  # of rate 0
    shutil.rmtree(tmp_path / "peft")  # what it gave is in the run directory, or read again
    with pytest.raises(FileNotFoundError, match="peft"):
        al.load_model(str(tmp_path / "run"), "float32")
    convert(done.out, tmp_path / "peft", "peft")
    assert_exports_alike(tmp_path / "run", done.out, tmp_path)
    again = open_any(str(tmp_path / "run"))
    assert again.lora is None and again.apart() is again


def assert_exports_alike(run: Path, adapted: Path, folder: Path) -> None:
    """A run that has not moved yet holds what it began from, bit for bit."""
    convert(run, folder / "run_hf", "hf", merge=open_any(str(run)).lora is not None)
    convert(adapted, folder / "adapted_hf", "hf", merge=True)
    tiny.assert_same(tiny.read_all(folder / "run_hf"), tiny.read_all(folder / "adapted_hf"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 2], ids=["taken on", "merged"])
def test_a_run_from_adapters_goes_on_bit_for_bit(rank, done, sky, tmp_path, monkeypatch):
    """Frozen kernels are read again from the adapters' base, or as they were merged."""
    convert(done.out, tmp_path / "peft", "peft")
    file = file_of(sky, tmp_path / "peft", tmp_path / "run")
    run = with_lora(file, "bfloat16", lora=LORA | {"rank": rank}, evaluate=None)
    with monkeypatch.context() as patch:
        small_run.on_devices(patch, 1)
        train(run)
        shutil.copytree(run.out, tmp_path / "undisturbed")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
        train(run)
    assert [line["attempt"] for line in lines(tmp_path / "run")] == [1] * 8 + [2] * 4
    assert curve(run.out) == curve(tmp_path / "undisturbed")
    expected, found = (arrays(tmp_path / name, 8) for name in ("undisturbed", "run"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def test_a_merge_changes_the_targets_alone_and_keeps_the_dtype(done, sky, tmp_path):
    assert main(["convert", str(done.out), str(tmp_path / "hf"), "--layout", "hf", "--merge"]) == 0
    base, found = tiny.read_all(sky / "base"), tiny.read_all(tmp_path / "hf")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in base.items()}
    moved = {name for name in base if not found[name].equal(base[name])}
    assert {n.split(".")[0] for n in moved} == {"multi_modal_projector", "language_model"}
    assert {n.split(".")[-2] for n in moved if n.startswith("language_model.")} == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    a, b = (arrays(done.out, 8)[f"trainable/{TARGET}/lora_{half}"][1] for half in "ab")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    merged = base[name].numpy().astype(np.float64) + 2 * (a.astype(np.float64) @ b).T
    assert (found[name].numpy() == merged.astype(np.float16)).mean() > 0.99


def test_full_weights_are_asked_for_by_name(done, stage1, tmp_path, capsys):
    convert_to = ["--layout", "hf", str(tmp_path / "hf")]
    assert main(["convert", str(done.out), *convert_to]) == MISTAKE
    told = capsys.readouterr().err
    assert f"{done.out} has LoRA adapters (rank 4)" in told
    assert "`--merge` writes full weights" in told and "`--layout peft`" in told
    assert main(["convert", str(stage1.out), *convert_to, "--merge"]) == MISTAKE
    assert f"--merge: {stage1.out} has no adapters" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("form", "devices"), [("int8", 1), pytest.param("nf4", 8, marks=pytest.mark.slow)]
)
def test_a_stored_base_trains_and_goes_on(form, devices, sky, stage1, tmp_path, monkeypatch):
    small_run.on_devices(monkeypatch, devices)
    run = with_lora(file_of(sky, stage1.out, tmp_path / "run"), form, evaluate=None)
    train(run)
    losses = [step[0] for step in curve(tmp_path / "run")]
    assert losses[-1] < losses[0] - 1
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    train(run)
    assert [step[0] for step in curve(tmp_path / "run")] == losses


def test_the_same_adapters_are_taken_on(done, sky, tmp_path):
    opened = open_any(str(done.out))
    run = with_lora(file_of(sky, done.out, tmp_path / "run"))
    model = describe(run, opened.source.config)
    taken, told = with_own_adapters(run, model, opened)
    assert told == f"the adapters of {done.out} are taken on"
    assert fresh_addresses(run, model, taken) == []
    trained = arrays(done.out, 8)[f"trainable/{TARGET}/lora_b"]
    np.testing.assert_array_equal(taken.changed[f"{TARGET}/lora_b"], trained)
    assert f"{TARGET}/kernel" not in taken.changed


@pytest.mark.slow
def test_other_adapters_begin_beside_the_merged_kernels(done, sky, tmp_path, capsys, monkeypatch):
    """The first update has rate 0, so that the new run is exported as the one before it."""
    file = file_of(sky, done.out, tmp_path / "run")
    with monkeypatch.context() as patch:
        small_run.on_devices(patch, 1)
        train(with_lora(file, lora=LORA | {"rank": 2}, steps=1, evaluate=None))
    told = f"note: the adapters of {done.out} (rank 4) are merged into its kernels"
    assert told in capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "base.json").read_text())
    assert len(facts["inherited"]) == 7 and f"{TARGET}/kernel" in facts["inherited"]
    kept = Arrays(str(tmp_path / "run" / "inherited"))
    assert {array.dtype for array in kept.values()} == {np.dtype(np.float16)}, "as in the base"
    assert_exports_alike(tmp_path / "run", done.out, tmp_path)


def test_a_kernel_beside_an_adapter_must_be_frozen(done, sky, tmp_path):
    opened = open_any(str(done.out))
    both = OPTIMIZER | {
        "groups": [{"name": "all", "params": "llm/.*", "peak_lr": 1e-3}],
        "frozen": ["vision/.*", "projector/.*"],
    }
    with pytest.raises(ValueError, match=f"beside a frozen kernel(.|\n)*{TARGET}/kernel"):
        describe(with_lora(done.file, optimizer=both), opened.source.config)
    twice = OPTIMIZER | {"frozen": ["vision/.*", "llm/.*"]}
    with pytest.raises(ValueError) as error:
        describe(with_lora(done.file, optimizer=twice), opened.source.config)
    assert f"{TARGET}/lora_a: matched by '.*/lora_[ab]', 'llm/.*'" in str(error.value)
    assert "leave them out of the base's pattern, as in 'llm/(?!.*/lora_).*'" in str(error.value)
