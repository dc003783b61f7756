"""A step of training beside a PyTorch loop of transformers' LLaVA, on the device that is there.

    astrollava bench train --work DIR [--shape smollm2] [--stage 1]

Every program is a process of its own and takes the same steps of the same samples, from the same
files of weights; on a CPU a few steps in turn, on an accelerator, whose memory holds one of them,
one after the other. Three comparisons:

    as used           theirs padded to the longest sample of a batch, ours packed into rows
    token for token   both on our rows, theirs with positions and a mask that keep samples apart
    torch.compile     the same two with theirs compiled, where PyTorch finds a C++ compiler

Times include the update, and input, whose pictures stand at training size on both sides; workers
make a few batches ahead, so that turns of more `--steps` than these hold what input costs. All
losses are printed side by side: in float32 they must agree, or the bench ends with 1. Processor
time is that of the program with its workers; it depends less than the clock on what else the
machine does. A program that fails on an accelerator is told, and the next one measured. Writes
DIR/train-SHAPE-STAGE.json, anew after each program.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from astrollava_jax import files
from astrollava_jax.bench import machine, train_job
from astrollava_jax.bench.command import at_least
from astrollava_jax.bench.train_found import RATIOS, Found, faults, told
from astrollava_jax.bench.train_job import MIXES, SHAPES, Job, in_parts
from astrollava_jax.bench.turns import Program
from astrollava_jax.models.remat import Remat


@dataclasses.dataclass(frozen=True)
class Kind:
    """A program that is measured."""

    about: str
    module: str
    arguments: tuple[str, ...] = ()


_THEIRS = "astrollava_jax.bench.train_theirs"
KINDS = {
    "ours": Kind("ours, packed rows", "astrollava_jax.run.timed"),
    "padded": Kind("transformers, padded batches", _THEIRS, ("padded",)),
    "packed": Kind("transformers, the same packed rows", _THEIRS, ("packed",)),
    "padded-compiled": Kind(
        "transformers, padded, torch.compile", _THEIRS, ("padded", "--compile")
    ),
    "packed-compiled": Kind(
        "transformers, packed, torch.compile", _THEIRS, ("packed", "--compile")
    ),
}
"""What is measured, in this order; ours says what its steps hold and so comes first."""


def measured(
    job: Job, names: Sequence[str], turns: int, steps: int, keep: Callable[[Found], None]
) -> Found:
    """Runs the programs of a job: `turns` turns of some steps each, and one before them.

    Args:
        job: what they do, which is written already.
        names: of the programs.
        turns: that are counted.
        steps: of a turn.
        keep: what is done with what is measured so far, after each program.

    Raises:
        RuntimeError, ValueError: if ours fails; on a CPU, where they take turns, if one does.
    """
    found = Found(steps, {}, {}, {})
    with contextlib.ExitStack() as ending:
        first = {names[0]: _started(job, names[0], found, ending)}
        if found.facts[names[0]]["platform"] == "cpu":
            others = {name: _started(job, name, found, ending) for name in names[1:]}
            _take(found, first | others, turns + 1)
        else:  # there is no room for two
            _take(found, first, turns + 1)
    keep(found)
    for name in [name for name in names if name not in found.turns]:
        try:
            with contextlib.ExitStack() as ending:
                _take(found, {name: _started(job, name, found, ending)}, turns + 1)
        except (RuntimeError, ValueError) as error:
            found.failed[name] = str(error)
            found.turns.pop(name, None)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        keep(found)
    return found


def _take(found: Found, programs: Mapping[str, Program], turns: int) -> None:
    """Has programs take their turns, one after the other each time."""
    for _ in range(turns):
        for name, program in programs.items():
            turn = program.take(found.steps)
            found.turns.setdefault(name, []).append(turn)
            found.resident[name] = program.most_resident()
            print(f"{name}: {turn.seconds:.3f} s", file=sys.stderr, flush=True)


def _started(job: Job, name: str, found: Found, ending: contextlib.ExitStack) -> Program:
    kind = KINDS[name]
    threads = {"PJRT_NPROC": str(job.threads), "OMP_NUM_THREADS": str(job.threads)}
    arguments = [kind.module, job.run, job.plan]
    if name != "ours":
        platform = found.facts["ours"]["platform"]
        arguments = [kind.module, job.folder, *kind.arguments, "--platform", platform]
    began = time.perf_counter()
    program = ending.enter_context(Program(arguments, threads))
    found.facts[name] = program.facts
    print(f"{name}: ready in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return program


def _check_pytorch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch, with which ours is compared, is not here: install '.[dev]'")


def compiles() -> str | None:
    """Why `torch.compile` does not work here; None where it does."""
    trial = "import torch; torch.compile(lambda x: x.exp() + 1)(torch.ones(8))"
    done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def described(job: Job, found: Found) -> list[str]:
    """What was measured, in words."""
    facts, shape = found.facts["ours"], SHAPES[job.shape]
    steps, samples = facts["steps"], facts["samples"]
    at_a_time = job.rows_per_device or facts["rows"]
    most = "all" if job.micro is None else f"at most {job.micro}"
    return [
        f"{job.shape}: {shape.about}; stage {job.stage} trains {facts['trained']:,} of "
        f"{facts['parameters']:,} numbers; {job.precision}, on {facts['device']}",
        f"steps of {samples / steps:.1f} samples as long as those of {job.mix}: mean "
        f"{facts['tokens'] / samples:.0f} positions, {facts['learned'] / samples:.0f} learned",
        f"ours in {facts['rows']} rows of {job.length}, {at_a_time} at a time, "
        f"{facts['tokens'] / facts['positions']:.1%} filled; theirs padded, {most} samples of a "
        f"step at a time, {facts['tokens'] / _padded(job):.1%} filled",
        f"{job.threads} threads each, {job.workers} workers each for input; theirs with gradient "
        f"checkpointing, {_attention(found)}; {steps} steps in all",
    ]


def _padded(job: Job) -> int:
    """Positions of all batches that are padded to their longest."""
    with files.open_read(job.plan) as handle:
        plan = dict(np.load(handle))
    steps = [plan["sample_tokens"][plan["sample_step"] == n].tolist() for n in range(job.steps)]
    batches = (batch for step in steps for batch in in_parts(step, job.micro))
    return sum(len(batch) * max(batch) for batch in batches)


def _attention(found: Found) -> str:
    names = {facts["attention"] for name, facts in found.facts.items() if name != "ours"}
    return " and ".join(sorted(names)) or "not measured"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where losses do not agree."""
    arguments = _arguments(argv)
    _check_pytorch()
    job = _job(arguments)
    names = [name for name in KINDS if name in ("ours", *arguments.programs)]
    if any("compiled" in name for name in names) and (why := compiles()) is not None:
        print(f"torch.compile does not work here, and is left out: {why}")
        names = [name for name in names if "compiled" not in name]
    print(machine.described(), flush=True)
    train_job.write(job, arguments.remat)
    where = files.join(arguments.work, f"train-{job.shape}-{job.stage}.json")
    found = measured(job, names, arguments.turns, arguments.steps, lambda f: _keep(where, job, f))
    lines = described(job, found)
    lines += told(found, job, {name: kind.about for name, kind in KINDS.items()})
    wrong = faults(found, job)
    print("\n".join([*lines, *wrong]))
    if not wrong:
        compared = "as they must be" if job.precision == "float32" else "finite, and not judged"
        print(f"losses are {compared}")
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    return 1 if wrong else 0


def _keep(where: str, job: Job, found: Found) -> None:
    summary: dict[str, Any] = {"machine": machine.described(), "job": dataclasses.asdict(job)}
    summary |= dataclasses.asdict(found) | {"faults": faults(found, job)}
    for clock, what in ((False, "processor_ratios"), (True, "clock_ratios")):
        summary[what] = {ratio.name: found.ratios(ratio, clock) for ratio in RATIOS}
    files.write_json(where, summary)


def _job(arguments: argparse.Namespace) -> Job:
    shape = SHAPES[arguments.shape]
    samples = None if arguments.rows else arguments.samples or shape.samples
    return Job(
        folder=files.absolute(files.join(arguments.work, "job")),
        shape=arguments.shape,
        stage=arguments.stage,
        mix=arguments.mix,
        samples=samples,
        rows=arguments.rows or (None if samples else shape.rows[arguments.stage]),
        length=arguments.length or shape.length,
        steps=arguments.steps * (arguments.turns + 1),
        precision=arguments.precision or shape.precision,
        micro=arguments.micro or shape.micro.get(arguments.stage),
        rows_per_device=arguments.rows_per_device,
        workers=_workers() if arguments.workers is None else arguments.workers,
        threads=arguments.threads or os.cpu_count() or 1,
    )


def _workers() -> int:
    """None where every processor computes."""
    cores = os.cpu_count() or 1
    return 0 if cores <= 4 else min(8, cores // 2)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="astrollava bench train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    shapes = "; ".join(f"{name}: {shape.about}" for name, shape in SHAPES.items())
    add("--work", required=True, metavar="DIR", help="a folder for everything that is written")
    add("--shape", choices=SHAPES, default="smollm2", help=f"the model (smollm2). {shapes}")
    add("--stage", type=int, choices=train_job.RATES, default=1, help="1: projector; 2: all")
    add("--mix", choices=MIXES, default="astrollava", help="whose lengths samples have")
    held = parser.add_mutually_exclusive_group()
    count = at_least(1)
    held.add_argument("--samples", type=count, metavar="N", help="of a step (by the shape)")
    held.add_argument("--rows", type=count, metavar="N", help="of a step, and what they hold")
    add("--length", type=count, metavar="N", help="positions of our rows (by the shape)")
    add("--micro", type=count, metavar="N", help="most samples of theirs at a time (by the shape)")
    add("--rows-per-device", type=count, metavar="N", help="rows at a time, on both sides (all)")
    add("--precision", choices=("float32", "bfloat16"), help="what is computed in (by the shape)")
    remats = ("auto", *get_args(Remat))
    add("--remat", choices=remats, default="auto", help="of ours, as in a run (auto)")
    add("--turns", type=count, default=5, metavar="N", help="besides one to warm up (5)")
    add("--steps", type=count, default=1, metavar="N", help="of a turn (1)")
    add("--threads", type=count, metavar="N", help="of each program (all)")
    add("--workers", type=at_least(0), metavar="N", help="of each that read pictures (by cores)")
    add(
        "--programs",
        nargs="+",
        choices=[name for name in KINDS if name != "ours"],
        default=[name for name in KINDS if name != "ours"],
        help="beside ours (all)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
