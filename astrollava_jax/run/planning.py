"""`plan` from a run's config to what is printed."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console

from astrollava_jax.run import estimate, plan_report
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.measuring import show_measured
from astrollava_jax.run.nearest import Try, nearest
from astrollava_jax.run.plan import LOCAL, Planned, machine, plan
from astrollava_jax.run.planned_model import planned_model
from astrollava_jax.run.sweeping import show_sweep


def show_plan(
    run: RunConfig,
    folder: str,
    topology: str,
    *,
    shape: str | None = None,
    rows_per_chip: int | None = None,
    as_json: bool = False,
    with_estimate: bool = False,
    axes: Sequence[str] | None = None,
    measured_steps: int | None = None,
    trace: str | None = None,
) -> bool:
    """Compiles a run's step for a machine, and prints what is known of it then.

    Where it does not fit, other settings are tried until one does.

    Args:
        run: the run.
        folder: that of its file.
        topology: the machine's name, or `local`.
        shape: the model's published name, in place of the directories that the run names.
        rows_per_chip: a step has so many rows on each chip, whatever the batch of the run.
        as_json: print JSON in place of tables.
        with_estimate: model the step's time too.
        axes: compile several settings instead, and rank them: see `show_sweep`.
        measured_steps: take so many steps of it, or of each setting: see `show_measured`.
        trace: a folder for a trace of the last of them.

    Returns:
        Whether the run as it was asked for fits, or any of the settings.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
    """
    if measured_steps is not None and topology != LOCAL:
        raise ValueError(
            f"--measure: steps can be taken on the devices of this machine only: --topology {LOCAL}"
        )
    where, outline = machine(topology), planned_model(run.init, folder, shape)
    if with_estimate:
        estimate.check(where)  # before a compilation that takes minutes
    throughput = rows_per_chip is not None
    if rows_per_chip is not None:
        run = _with_rows(run, rows_per_chip)
    if measured_steps is not None:
        return show_measured(
            run, where, outline, axes, rows_per_chip=rows_per_chip, steps=measured_steps,
            trace=trace, as_json=as_json,
        )  # fmt: skip
    if axes is not None:
        return show_sweep(run, where, outline, axes, rows_per_chip=rows_per_chip, as_json=as_json)

    def compile_step(run: RunConfig) -> Planned:
        return plan(run, where, outline, throughput=throughput)

    # Tables go where JSON does not, and are told as they are known: a compilation takes its time.
    console = Console(soft_wrap=True, markup=False, highlight=False, quiet=as_json)
    planned = compile_step(run)
    plan_report.show(console, planned)
    modelled = estimate.told(console, planned) if with_estimate else {}
    tries: list[Try] = []
    if not planned.fits:
        console.print("\ntrying what may fit, the least harmful first; rows by halving:")
        option = "--rows-per-chip" if throughput else "--batch.rows_per_device"
        for one in nearest(planned, compile_step, option):
            tries.append(one)
            plan_report.show_try(console, one)
        plan_report.show_nearest(console, tries)
    if as_json:
        print(plan_report.as_json(planned, tries, modelled))
    return planned.fits


def _with_rows(run: RunConfig, rows_per_chip: int) -> RunConfig:
    if rows_per_chip < 1:
        raise ValueError(f"--rows-per-chip is {rows_per_chip}, expected at least 1")
    batch = dataclasses.replace(run.batch, rows_per_device=rows_per_chip)
    return dataclasses.replace(run, batch=batch)
