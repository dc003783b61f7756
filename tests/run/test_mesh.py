"""The same numbers, on however many devices, and however many rows a device takes at a time."""

import math

import numpy as np
import pytest
import small_run
from rich.console import Console
from small_run import curve, held_out, on_devices

from astrollava_jax.cli.main import MISTAKE, main
from astrollava_jax.run.ready import get_ready
from astrollava_jax.run.train import train

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CASES = {
    "stage 1, one device": (1, 1, {}),
    "stage 1, fsdp 4 x tensor 2": (1, 8, {"mesh": {"tensor": 2}}),
    "stage 2, one device, two rows at a time": (2, 1, {"batch__rows_per_device": 2}),
    "stage 2, data 2 x fsdp 2 x tensor 2, one row at a time": (
        2, 8, {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "batch__rows_per_device": 1}
    ),
    "stage 2, frozen weights on all of fsdp 4 x tensor 2": (
        2, 8, {"mesh": {"fsdp": 4, "tensor": 2, "frozen": "replicated"}}
    ),
}  # fmt: skip
"""Stage, devices, and what its file says otherwise; it is compared with fsdp 8."""
BY_HAND = [case for case in CASES if case.startswith("stage 1")]
"""Stage 2 trains all that stage 1 does, and more, on meshes like theirs."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in BY_HAND else ()) for case in CASES],
)
def test_losses(case, stage1, stage2, tmp_path, monkeypatch):
    stage, devices, changes = CASES[case]
    done = {1: stage1, 2: stage2}[stage]
    on_devices(monkeypatch, devices)
    train(small_run.read_run(done.file, out=str(tmp_path), **changes))
    found, expected = np.array(curve(tmp_path)), np.array(curve(done.out))
    assert found.shape == (small_run.STEPS, 3) and expected[-1, 0] < expected[0, 0]
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4)
    assert np.array_equal(found[:, 2], expected[:, 2])
    assert list(held_out(tmp_path)) == list(held_out(done.out)) == [6, 8]
    for step, loss in held_out(done.out).items():
        assert held_out(tmp_path)[step] == pytest.approx(loss, rel=1e-5)


MESHES = (
    {"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 4, "tensor": 2, "frozen": "replicated"},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_twenty_steps_on_every_mesh(stage, stage1, stage2, tmp_path):
    curves = []
    for number, mesh in enumerate(({"data": 1, "fsdp": 8}, *MESHES)):
        out, file = tmp_path / str(number), {1: stage1, 2: stage2}[stage].file
        train(small_run.read_run(file, out=str(out), steps=20, evaluate=None, mesh=mesh))
        curves.append(np.array(curve(out))[:, 0])
    assert all(len(losses) == 20 for losses in curves)
    assert np.std(curves[0]) > 1e-2, "the losses move"
    for mesh, losses in zip(MESHES, curves[1:]):
        np.testing.assert_allclose(losses, curves[0], rtol=1e-5, err_msg=f"{mesh}")


def test_frozen_weights_that_are_replicated_lie_whole_on_every_device_of_fsdp(stage1):
    run = small_run.read_run(stage1.file, mesh={"fsdp": 4, "tensor": 2, "frozen": "replicated"})
    stage = get_ready(Console(quiet=True), run, (), keep=False).stage
    ways = {}
    for address, placed in stage.shardings.items():
        shape = stage.model.shapes[address].shape
        ways[address] = math.prod(shape) // math.prod(placed.shard_shape(shape))
    assert {ways[address] for address in stage.model.frozen} == {1, 2}, "over tensor, or not at all"
    assert ways["llm/layers/attn/q_proj/kernel"] == 2
    assert max(ways[address] for address in stage.model.trainable) == 4


def refusal(changes, stage1, tmp_path, capsys) -> str:
    """What is said of a run that cannot be; nothing of it is left."""
    out = tmp_path / "out"
    assert main(["train", stage1.file, "--out", str(out), *changes]) == MISTAKE
    assert not (out / "base.json").exists()
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_a_mesh_that_does_not_divide_the_model(stage1, tmp_path, capsys):
    told = refusal(["--mesh.fsdp", "1", "--mesh.tensor", "8"], stage1, tmp_path, capsys)
    assert "does not divide the model" in told
    # Every fault at once: four query heads, two of keys and values.
    assert "llm/layers/attn/q_proj/kernel: heads is 4, not divisible by ('tensor',) = 8" in told
    assert "llm/layers/attn/k_proj/kernel: heads is 2, not divisible by ('tensor',) = 8" in told


def test_a_mesh_that_is_not_there(stage1, tmp_path, capsys):
    told = refusal(["--mesh.data", "3"], stage1, tmp_path, capsys)
    assert "does not fit 8 device(s)" in told


def test_rows_that_do_not_divide_over_the_mesh(stage1, tmp_path, capsys):
    changes = ["--batch.samples", "null", "--batch.rows", "12"]
    told = refusal(changes, stage1, tmp_path, capsys)
    assert "batch.rows is 12" in told and "multiple of 8" in told
