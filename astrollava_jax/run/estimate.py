"""`plan --estimate`: what a step would take by a model, which is told beside every figure."""

from typing import Any

from rich.console import Console

from astrollava_jax.planning.network import ring_of
from astrollava_jax.planning.roofline import Estimate, estimate
from astrollava_jax.planning.schedule import Modelled, modelled
from astrollava_jax.planning.topologies import Topology
from astrollava_jax.run.plan import Machine, Planned


def told(console: Console, planned: Planned) -> dict[str, Any]:
    """Prints the modelled time of a step, or why there is none, and gives the same for JSON.

    Nothing of a step that does not fit.
    """
    try:
        found = estimated(planned)
    except ValueError as error:  # all else that is known of the step was dearly compiled
        console.print(f"\nno ESTIMATE: {error}")
        return {"estimate": None, "estimate_refused": str(error)}
    if found is None:
        return {}
    show(console, *found)
    return {"estimate": facts(*found)}


def estimated(planned: Planned) -> tuple[Modelled, Estimate] | None:
    """The modelled step and what it means for the run; None for a step that does not fit.

    Raises:
        ValueError: if the machine is not in the table, or the model leaves out too much.
    """
    topology = check(planned.machine)
    if not planned.fits:
        return None
    step = modelled(planned.text, topology.chip, ring_of(topology))
    return step, estimate(
        step,
        useful_flops=planned.useful,
        samples=planned.rows.samples,
        steps=planned.steps,
        chips=topology.chips,
        chip=topology.chip,
    )


def check(machine: Machine, option: str = "--estimate") -> Topology:
    """What the model needs to know of a machine.

    Args:
        machine: the machine.
        option: what asked for a modelled time.

    Raises:
        ValueError: if the machine is not in the table.
    """
    if machine.topology is None:
        raise ValueError(
            f"{option}: {machine.name} is not in the table of topologies; time the step itself, "
            "there where it runs"
        )
    return machine.topology


def facts(step: Modelled, found: Estimate) -> dict[str, Any]:
    """The same as plain values, in seconds."""
    return {
        "reliance": found.reliance,
        **parts(step),
        "mfu": found.mfu,
        "mfu_without_waiting": found.mfu_without_waiting,
        "samples_per_second": found.samples_per_second,
        "hours": found.hours,
    }


def parts(step: Modelled) -> dict[str, Any]:
    """The modelled time of a step and what it is made of, in seconds."""
    return {
        "step_seconds": step.seconds,
        "compute_seconds": step.compute_seconds,
        "attention_kernel_seconds": step.kernel_seconds,
        "exposed_seconds": dict(step.exposed_seconds),
        "copy_seconds": step.copy_seconds,
        "without_a_time": dict(step.unknown),
    }


def show(console: Console, step: Modelled, found: Estimate) -> None:
    """Prints it."""
    waits = [f"{kind} {seconds * 1e3:.1f}" for kind, seconds in step.exposed_seconds.items()]
    told = [
        f"compute {step.compute_seconds * 1e3:.1f}",
        f"attention kernels {step.kernel_seconds * 1e3:.1f}",
        *[f"waiting for {wait}" for wait in waits],
        f"waiting for copies {step.copy_seconds * 1e3:.1f}",
    ]
    console.print(f"\nESTIMATE ({found.reliance})")
    console.print(f"  step {found.step_seconds * 1e3:.1f} ms: {', '.join(told)}")
    console.print(
        f"  MFU {found.mfu:.1%} ({found.mfu_without_waiting:.1%} if nothing were waited for), "
        f"{found.samples_per_second:.1f} samples/s"
        + ("" if found.hours is None else f", {found.hours:.1f} h for the run's steps")
    )
    if step.unknown:
        listed = ", ".join(f"{count} {opcode}" for opcode, count in step.unknown.items())
        console.print(f"  without a time, and counted as none: {listed}")
