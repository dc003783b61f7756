"""What it takes to have a model's weights on the device, beside transformers on the same files.

    astrollava bench load --work DIR [--shape smollm2]

The model has random numbers and lies on the disk as on the hub. Loaded in turn, each time by a
process of its own whose imports are not counted:

    transformers       `from_pretrained`
    ours, hf           the same files, straight to where each parameter lies
    ours, orbax        our own layout, converted from them

Then `astrollava train` takes one step of it, and tells the parts of the way there. Files are in the
system's cache after the first turn, which is not counted. Writes DIR/load.json. Linux only.
"""

import argparse
import dataclasses
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from astrollava_jax import files
from astrollava_jax.bench import machine, memory, train_job
from astrollava_jax.bench.command import at_least
from astrollava_jax.bench.train_job import SHAPES, Job

TOLERANCE = 1e-3
"""How far the sums of all numbers may be apart, which are added in another order."""

WAYS = {
    "transformers": ("transformers", "hf"),
    "ours, hf": ("ours", "hf"),
    "ours, orbax": ("ours", "orbax"),
}
"""Program and layout of each."""

Facts = dict[str, Any]


def measured(work: str, models: Mapping[str, str], turns: int) -> dict[str, list[Facts]]:
    """What each way took in each turn, of models by layout; one turn before is not counted."""
    found: dict[str, list[Facts]] = {name: [] for name in WAYS}
    for turn in range(turns + 1):
        for name, (program, layout) in WAYS.items():
            out = files.join(work, "loaded.json")
            arguments = [program, models[layout], out]
            used = memory.measured(["astrollava_jax.bench.whole_model", *arguments])
            facts = files.read_json_object(out)
            facts |= {"held_gb": used.facts["held_gb"], "resident_gb": used.facts["resident_gb"]}
            if turn:
                found[name].append(facts)
    return found


def faults(found: Mapping[str, list[Facts]]) -> list[str]:
    """Ways by which other numbers came than by the first."""
    first, *others = found
    wanted = found[first][-1]
    told = []
    for name in others:
        last = found[name][-1]
        same = abs(last["sum"] - wanted["sum"]) <= TOLERANCE * wanted["sum"]
        if last["parameters"] != wanted["parameters"] or not same:
            told.append(
                f"{name}: expected {wanted['parameters']} numbers with the sum {wanted['sum']:.6g}"
                f", found {last['parameters']} with {last['sum']:.6g}"
            )
    return told


def told(found: Mapping[str, list[Facts]], size: float) -> list[str]:
    """The lines of the table."""
    lines = [f"{'':<16}{'processor s':<34}{'clock s':<34}GB held (GB with mapped files)"]
    for name, turns in found.items():
        columns = [_spread([turn[key] for turn in turns]) for key in _TIMES]
        most = [max(turn[key] for turn in turns) for key in ("held_gb", "resident_gb")]
        times = "".join(f"{column:<34}" for column in columns)
        lines.append(f"  {name:<14}{times}{most[0]:.2f} ({most[1]:.2f})")
    return [*lines, f"the files have {size:.2f} GB"]


_TIMES = ("processor_seconds", "seconds")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})"


def first_step(job: Job) -> str:
    """What `astrollava train` tells of the way to its first step."""
    said = _astrollava("train", job.run, "--steps", "1")
    lines = re.findall(r"^ready in .*$", said, re.MULTILINE)
    return lines[0] if lines else "the run has told nothing of its way to the first step"


def _astrollava(*arguments: str) -> str:
    command = [sys.executable, "-m", "astrollava_jax", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where the numbers that were loaded differ."""
    arguments = _arguments(argv)
    shape, work = SHAPES[arguments.shape], files.absolute(arguments.work)
    print(machine.described(), flush=True)
    job = Job(
        folder=files.join(work, "job"), shape=arguments.shape, stage=arguments.stage,
        mix="llava", samples=2, rows=None, length=shape.length, steps=1,
        precision=shape.precision, micro=None, rows_per_device=None, workers=0, threads=0,
    )  # fmt: skip
    train_job.write(job, "full")
    models = {"hf": job.model, "orbax": files.join(job.folder, "orbax")}
    _astrollava("convert", models["hf"], models["orbax"], "--layout", "orbax")
    found = measured(work, models, arguments.turns)
    size = (
        sum(files.size_bytes(files.join(job.model, name)) for name in files.walk(job.model)) / 1e9
    )
    ready, wrong = first_step(job), faults(found)
    print("\n".join([*told(found, size), f"train, stage {job.stage}: {ready}", *wrong]))
    summary: Facts = {"machine": machine.described(), "job": dataclasses.asdict(job)}
    files.write_json(
        files.join(work, "load.json"),
        summary | {"turns": found, "gb": size, "train": ready, "faults": wrong},
    )
    return 1 if wrong else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="astrollava bench load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", required=True, metavar="DIR", help="a folder for everything that is written")
    add("--shape", choices=SHAPES, default="smollm2", help="the model (smollm2)")
    add("--stage", type=int, choices=train_job.RATES, default=1, help="of the step (1)")
    add("--turns", type=at_least(1), default=3, metavar="N", help="besides one to warm up (3)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
