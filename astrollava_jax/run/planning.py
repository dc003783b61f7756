"""`plan` from a run's config to what is printed."""

import dataclasses

from rich.console import Console

from astrollava_jax.run import estimate, plan_report
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.measuring import show_measured
from astrollava_jax.run.nearest import Try, nearest
from astrollava_jax.run.plan import Machine, Planned, machine, plan
from astrollava_jax.run.plan_options import Asked
from astrollava_jax.run.planned_model import planned_model
from astrollava_jax.run.sweeping import show_sweep
from astrollava_jax.weights.outline import Outline


def show_plan(run: RunConfig, folder: str, asked: Asked) -> bool:
    """Compiles a run's step for a machine, and prints what is known of it then.

    Where it does not fit, other settings are tried until one does. Several settings are compiled
    and ranked, or their steps taken and timed, where that is asked.

    Args:
        run: the run.
        folder: that of its file.
        asked: for which machine, and what else.

    Returns:
        Whether the run as it was asked for fits, or any of the settings.

    Raises:
        ValueError, FileNotFoundError: the user's mistakes, each with what to do.
    """
    where, outline = machine(asked.topology), planned_model(run.init, folder, asked.shape)
    if asked.estimate:
        estimate.check(where)  # before a compilation that takes minutes
    if asked.rows_per_chip is not None:
        batch = dataclasses.replace(run.batch, rows_per_device=asked.rows_per_chip)
        run = dataclasses.replace(run, batch=batch)
    if asked.measure is not None:
        return show_measured(run, where, outline, asked)
    if asked.axes is not None:
        return show_sweep(
            run, where, outline, asked.axes,
            rows_per_chip=asked.rows_per_chip, as_json=asked.as_json,
        )  # fmt: skip
    return _show_compiled(run, where, outline, asked)


def _show_compiled(run: RunConfig, where: Machine, outline: Outline, asked: Asked) -> bool:
    """Compiles the run's own setting, and others until one fits."""
    throughput = asked.rows_per_chip is not None

    def compile_step(run: RunConfig) -> Planned:
        return plan(run, where, outline, throughput=throughput)

    # Tables go where JSON does not, and are told as they are known: a compilation takes its time.
    console = Console(soft_wrap=True, markup=False, highlight=False, quiet=asked.as_json)
    planned = compile_step(run)
    plan_report.show(console, planned)
    modelled = estimate.told(console, planned) if asked.estimate else {}
    tries: list[Try] = []
    if not planned.fits:
        console.print("\ntrying what may fit, the least harmful first; rows by halving:")
        option = "--rows-per-chip" if throughput else "--batch.rows_per_device"
        for one in nearest(planned, compile_step, option):
            tries.append(one)
            plan_report.show_try(console, one)
        plan_report.show_nearest(console, tries)
    if asked.as_json:
        print(plan_report.as_json(planned, tries, modelled))
    return planned.fits
