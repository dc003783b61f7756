"""Settings that are tried where a step does not fit, the least harmful first."""

import dataclasses

import jax
from stand_in import changed

from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.nearest import nearest
from astrollava_jax.run.plan import Planned
from astrollava_jax.sharding import MeshConfig


def test_settings_are_tried_in_the_order_of_least_harm(planned):
    """A stand-in for the compiler, to which nothing fits but eight ways of a tensor."""
    tried = []

    def compile_step(run: RunConfig) -> Planned:
        tried.append(run)
        return changed(planned, run, fits=run.mesh.tensor == 8)

    run = dataclasses.replace(planned.run, remat="none")
    first = changed(planned, run, fits=False)
    first = dataclasses.replace(first, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    found = list(nearest(first, compile_step))
    assert [one.said.split("--")[-1] for one in found] == [
        "batch.rows_per_device 4", "batch.rows_per_device 2", "batch.rows_per_device 1",
        "remat dots_attention", "remat dots", "remat mlp", "remat projections",
        "remat attention", "remat full", "remat offload",
        "mesh '{data: 1, fsdp: 4, tensor: 2, frozen: sharded}'",
        "precision.frozen int8", "precision.frozen nf4",
        "mesh '{data: 1, fsdp: 2, tensor: 4, frozen: sharded}'",
        "mesh '{data: 1, fsdp: 1, tensor: 8, frozen: sharded}'",
    ]  # fmt: skip
    last = tried[-1]
    assert (last.batch.rows_per_device, last.remat, last.precision.frozen) == (1, "offload", "nf4")
    assert last.mesh == MeshConfig(data=1, fsdp=1, tensor=8, frozen="sharded")
    assert found[-1].said == (
        "--batch.rows_per_device 1 --remat offload --precision.frozen nf4 "
        "--mesh '{data: 1, fsdp: 1, tensor: 8, frozen: sharded}'"
    )


def test_frozen_weights_are_sharded_before_they_lose_precision_unless_they_are(planned):
    run = dataclasses.replace(planned.run, remat="offload")
    mesh = "--mesh '{data: 1, fsdp: 4, tensor: 2, frozen: sharded}'"

    def said(**known) -> list[str]:
        """What is tried where nothing fits, and one row is computed at a time already."""
        first = dataclasses.replace(changed(planned, run, fits=False), micro_batches=8, **known)
        return [one.said for one in nearest(first, lambda run: changed(planned, run, fits=False))]

    assert planned.frozen == "sharded" and mesh not in said()
    assert said(frozen="replicated")[:2] == [mesh, f"{mesh} --precision.frozen int8"]
    assert mesh not in said(frozen="replicated", held={**planned.held, "frozen weights": 0})


def test_a_setting_that_cannot_be_is_told_and_passed_over(planned):
    def compile_step(run: RunConfig) -> Planned:
        if run.precision.frozen == "int8":
            raise ValueError("nothing to store")
        return changed(planned, run, fits=run.precision.frozen == "nf4")

    run = dataclasses.replace(planned.run, remat="offload")
    first = dataclasses.replace(changed(planned, run, fits=False), micro_batches=8)
    int8, nf4 = nearest(first, compile_step)
    assert (int8.planned, int8.why) == (None, "nothing to store")
    assert nf4.said == "--precision.frozen nf4"


def test_a_try_on_which_the_compiler_breaks_down_costs_no_other(planned):
    errors = iter([jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat 0x1\nat 0x2"),
                   NotImplementedError()])  # fmt: skip

    def compile_step(run: RunConfig) -> Planned:
        if error := next(errors, None):
            raise error
        return changed(planned, run, fits=True)

    *broken, last = nearest(changed(planned, planned.run, fits=False), compile_step)
    assert [(one.planned, one.why) for one in broken] == [
        (None, "INTERNAL: Mosaic failed"), (None, "NotImplementedError()"),
    ]  # fmt: skip
    assert last.said == "--batch.rows_per_device 1" and last.planned is not None


def test_fewer_rows_are_told_as_they_were_asked_for(planned):
    first = changed(planned, planned.run, fits=False)
    found = nearest(first, lambda run: changed(planned, run, fits=True), rows="--rows-per-chip")
    assert [one.said for one in found] == ["--rows-per-chip 4"]


def test_a_remat_that_is_left_open_is_decided_for_each_setting_and_named(planned):
    """Half the rows have room for more; one row is decided to keep too much, and keeps less."""
    decide = {8: "full", 4: "attention", 2: "mlp", 1: "dots"}

    def decided(run: RunConfig, fits: bool) -> Planned:
        kept = decide[run.batch.rows_per_device or 8] if run.remat == "auto" else run.remat
        found = changed(planned, dataclasses.replace(run, remat=kept), fits)
        return dataclasses.replace(found, asked=run)

    first = decided(dataclasses.replace(planned.run, remat="auto"), fits=False)
    (found,) = nearest(first, lambda run: decided(run, fits=True))
    assert found.said == "--batch.rows_per_device 4 --remat attention"
    assert found.planned is not None and found.planned.run.remat == "attention"
    *_, one, less, last = nearest(first, lambda run: decided(run, fits=run.remat == "projections"))
    assert one.said == "--batch.rows_per_device 1 --remat dots"
    assert less.said == "--batch.rows_per_device 1 --remat mlp"
    assert last.said == "--batch.rows_per_device 1 --remat projections"
