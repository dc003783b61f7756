"""Trains thousands of steps while the run is killed again and again. Linux.

    python -m astrollava_jax.bench.soak --work DIR [--steps 4000] [--kills 20] [--processes 1]

Each kill comes at a random moment, its start included, and is SIGTERM or SIGKILL to one process of
the run; the others must end by themselves. At the end the run must be equal to the same run
undisturbed, bit for bit, and its folder hold nothing but good checkpoints. Of the undisturbed run
the resident memory is read twice a second: it must not grow. The figures go to
DIR/soak-PROCESSES.json.
"""

import contextlib
import random
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.bench import command, small_job
from astrollava_jax.bench.kill_matrix import DEVICES, curve, last_arrays
from astrollava_jax.bench.memory import status
from astrollava_jax.bench.processes import RESUMABLE, Processes
from astrollava_jax.training import manifest

EVERY = 50
"""Steps from one checkpoint to the next."""
KIND = "full"
SEED = 0
SECONDS = 3600.0
MOST_GROWTH = 0.02
"""Of the memory, over the second half of the steps."""

Facts = dict[str, Any]


def undisturbed(work: str, steps: int, processes: int) -> Facts:
    """The run as it should be, and the memory of its first process, after how many steps."""
    out = files.join(work, f"whole-{processes}")
    seen: list[tuple[int, int]] = []
    began = time.monotonic()
    with _start(work, out, steps, processes) as run:
        run.wait_for_step(1)
        child = run.child(0)
        while run[0].poll() is None:
            with contextlib.suppress(KeyError):  # it has just ended
                seen.append((run.lines()[-1]["step"], status(child)["VmRSS"]))
            time.sleep(0.5)
        run.complete(SECONDS)
    return {"whole_seconds": time.monotonic() - began} | memory(seen, steps)


def memory(seen: Sequence[tuple[int, int]], steps: int) -> Facts:
    """What (step, bytes) tell of the second half of a run: a line through them, and its rise."""
    late = [(step, size) for step, size in seen if step >= steps / 2]
    slope, at_zero = np.polyfit([step for step, _ in late], [size for _, size in late], 1)
    middle = at_zero + slope * steps / 2
    return {
        "resident_mb_at_half": middle / 1e6,
        "grown_mb_per_1000_steps": 1000 * slope / 1e6,
        "growth_of_second_half": slope * steps / 2 / middle,
    }


def disturbed(work: str, steps: int, processes: int, kills: int) -> Facts:
    """The same run, killed so often; how, when, and how its processes ended."""
    out = files.join(work, f"killed-{processes}")
    chance, told, faults = random.Random(SEED), [], []
    began = time.monotonic()
    reach = 0.0  # as long as a start takes: kills fall before the first step too
    while True:
        started, before = time.monotonic(), _last_step(out)
        with _start(work, out, steps, processes) as run:
            if len(told) == kills:
                run.complete(SECONDS)
                break
            if not reach:
                run.wait_for_step(1)
                reach = 2 * (time.monotonic() - started)
            with contextlib.suppress(RuntimeError):  # it may be complete before
                run.wait_until(_after(chance.uniform(0, reach)))
            if all(process.poll() == 0 for process in run.processes):
                break
            what, whom = chance.choice(("SIGTERM", "SIGKILL")), chance.randrange(processes)
            if what == "SIGTERM":
                run.signal(whom, signal.SIGTERM)
            else:
                run.kill(whom)
            codes = [one.code for one in run.ended()]
        expected = {RESUMABLE, 0, -signal.SIGKILL} if what == "SIGKILL" else {RESUMABLE, 0}
        if not set(codes) <= expected:
            faults.append(f"{what} number {len(told)}: ended with {codes}")
        told.append({"kill": what, "process": whom, "from": before, "to": _last_step(out)})
        told[-1]["codes"] = codes
    return {"killed_seconds": time.monotonic() - began, "kills": told, "faults": faults}


def compared(work: str, steps: int, processes: int) -> Facts:
    """Whether the killed run is the other one, and what else its folder holds."""
    whole, killed = (files.join(work, f"{name}-{processes}") for name in ("whole", "killed"))
    folder, faults = files.join(killed, "checkpoints"), []
    if curve(killed) != curve(whole):
        faults.append("losses differ from those of the undisturbed run")
    if last_arrays(killed, steps) != last_arrays(whole, steps):
        faults.append("the last checkpoint differs from that of the undisturbed run")
    for name in files.names(folder):
        if not name.isdigit() or manifest.faults(files.join(folder, name)):
            faults.append(f"left behind, and no good checkpoint: {name}")
    return {"steps": len(curve(killed)), "faults": faults}


def _start(work: str, out: str, steps: int, processes: int) -> Processes:
    path = files.join(work, KIND)
    return Processes(
        small_job.write_run(work, KIND, path, steps=steps, every_steps=EVERY),
        out,
        processes,
        DEVICES // processes,
        compiled=files.join(work, "compiled"),
    )


def _after(seconds: float):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _last_step(out: str) -> int:
    return len(curve(out))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both; 0 where all is as it must be, else 1."""
    parser = command.parser("soak", __doc__, "where the runs are")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4))
    arguments = parser.parse_args(argv)
    steps, processes = arguments.steps, arguments.processes
    work = command.unused_folder(files.absolute(arguments.work), rf"(whole|killed)-{processes}")
    small_job.write(work)
    facts = {"processes": processes} | undisturbed(work, steps, processes)
    facts |= disturbed(work, steps, processes, arguments.kills)
    faults = facts.pop("faults")
    end = compared(work, steps, processes)
    faults += end.pop("faults")
    if facts["growth_of_second_half"] > MOST_GROWTH:
        faults.append(f"memory grew by {facts['growth_of_second_half']:.1%}")
    facts |= end | {"faults": faults}
    figures = files.join(work, f"soak-{processes}.json")
    files.write_json(figures, facts)
    for name, value in facts.items():
        print(f"{name:<24} {len(value) if isinstance(value, list) else value}")
    return command.ended(faults, figures)


if __name__ == "__main__":
    sys.exit(main())
