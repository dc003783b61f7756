"""Kills real runs in every way, starts them again, and tells what was lost. Linux.

    python -m astrollava_jax.bench.kill_matrix --work DIR
        [--kills SIGTERM,SIGKILL,mid-save] [--processes 1,2,4] [--kinds stage1,full,lora]

SIGTERM    to one process of the run: its machine is taken away with notice
SIGKILL    to one process, at a random moment: its machine is taken away without
mid-save   SIGKILL to all, while a checkpoint is half written: the power fails

A run is the smallest model of the simulated sky, on four simulated devices that its processes
share. It is killed once: every process that was not must end by itself, with the code 75. Started
again, it must end with 0. Then it is compared with the same run, undisturbed: every loss, and the
fingerprint of every array of the last checkpoint. The table goes to DIR/kill_matrix.md, the figures
to DIR/kill_matrix.json.
"""

import dataclasses
import itertools
import math
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.bench import command, small_job
from astrollava_jax.bench.processes import RESUMABLE, Processes
from astrollava_jax.training import manifest
from astrollava_jax.training.metrics import read_log

DEVICES = 4
STEPS, EVERY = 24, 6
"""Steps of a run, and from one checkpoint to the next."""
SEED = 0
"""Of the moments at which SIGKILL comes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is done to which run."""

    kill: str
    processes: int
    kind: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.kind}-{self.processes}-{self.kill}"


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of it."""

    case: Case
    codes: list[int]
    """How the processes ended, the killed one's too."""
    seconds: float
    """From the signal to the end of the last process."""
    told_step: int
    """The last step that the log told of before the end."""
    lost_steps: int
    """Of those, how many were done again."""
    largest_difference: float
    """Of a loss, from the undisturbed run's, relative."""
    equal: bool
    """Whether all losses and all arrays of the last checkpoint are the same bit for bit."""

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        case, found = self.case, []
        killed = {"SIGTERM": 0, "SIGKILL": 1, "mid-save": case.processes}[case.kill]
        survivors = [code for code in self.codes if code == RESUMABLE]
        if len(survivors) < case.processes - killed:
            found.append(f"ended with {self.codes}, expected {RESUMABLE} of the survivors")
        allowed = 0 if case.kill == "SIGTERM" else 2 * EVERY
        if self.lost_steps > allowed:
            found.append(f"lost {self.lost_steps} steps, expected at most {allowed}")
        if not self.equal:
            found.append(f"differs from the undisturbed run by {self.largest_difference:.1e}")
        return [f"{case.name}: {fault}" for fault in found]


def terminate(run: Processes, chance: random.Random) -> None:
    """Asks one process to end, somewhere between the first and the last save."""
    run.wait_for_step(chance.randrange(EVERY, STEPS - EVERY))
    run.signal(chance.randrange(len(run)), signal.SIGTERM)


def kill(run: Processes, chance: random.Random) -> None:
    """Ends one process, and what belongs to it, at once."""
    run.wait_for_step(chance.randrange(EVERY + 1, STEPS - EVERY))
    run.kill(chance.randrange(len(run)))


def kill_in_mid_save(run: Processes, chance: random.Random) -> None:
    """Ends all processes while the second checkpoint is on its way to the disk.

    That is from its folder's first appearance under a temporary name until its manifest is whole.
    """
    folder = files.join(run.out, "checkpoints")

    def half_written() -> bool:
        there = files.names(folder) if files.is_folder(folder) else []
        begun = [name for name in there if name.split(".")[0] == str(2 * EVERY)]
        return bool(begun) and not manifest.is_trusted(files.join(folder, begun[0]))

    run.wait_until(half_written)
    for number in range(len(run)):
        run.kill(number)


KILLS: dict[str, Callable[[Processes, random.Random], None]] = {
    "SIGTERM": terminate,
    "SIGKILL": kill,
    "mid-save": kill_in_mid_save,
}


class Matrix:
    """The cases, run below one folder; what is undisturbed is run once for all of its cases."""

    def __init__(self, work: str):
        runs = rf"({'|'.join(small_job.KINDS)})-\d+-.*"
        self.work = command.unused_folder(work, runs)
        self._undisturbed: dict[tuple[int, str], str] = {}
        small_job.write(self.work)

    def run(self, case: Case) -> Found:
        """One case."""
        whole = self._whole(case.processes, case.kind)
        out = files.join(self.work, case.name)
        with self._start(case, out) as run:
            KILLS[case.kill](run, random.Random(f"{SEED} {case.name}"))
            ended = run.ended()
            told = run.lines()[-1]["step"]
        with self._start(case, out) as run:
            run.complete()
            again = min(line["step"] for line in run.lines() if line["attempt"] == 2)
        found, expected = curve(out), curve(whole)
        return Found(
            case=case,
            codes=[one.code for one in ended],
            seconds=max(one.seconds for one in ended),
            told_step=told,
            lost_steps=told + 1 - again,
            largest_difference=largest_difference(found, expected),
            equal=found == expected and last_arrays(out, STEPS) == last_arrays(whole, STEPS),
        )

    def _whole(self, processes: int, kind: str) -> str:
        """The run directory of the undisturbed run."""
        key = processes, kind
        if key not in self._undisturbed:
            case = Case("undisturbed", processes, kind)
            self._undisturbed[key] = files.join(self.work, case.name)
            with self._start(case, self._undisturbed[key]) as run:
                run.complete()
        return self._undisturbed[key]

    def _start(self, case: Case, out: str) -> Processes:
        file = small_job.write_run(
            self.work, case.kind, files.join(self.work, case.kind), steps=STEPS, every_steps=EVERY
        )
        return Processes(
            file,
            out,
            case.processes,
            DEVICES // case.processes,
            compiled=files.join(self.work, "compiled"),
        )


def curve(out: str) -> list[float]:
    """The loss of every step."""
    return [facts["loss"] for facts in read_log(files.join(out, "log.jsonl"))]


def largest_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Of a loss, relative; not a number where one is none, endless where there are more or less."""
    if len(found) != len(expected):
        return math.inf
    return float(np.max([abs(a - b) / abs(b) for a, b in zip(found, expected)]))


def last_arrays(out: str, step: int) -> Any:
    """The fingerprint of every array of the last checkpoint."""
    return manifest.read(files.join(out, "checkpoints", str(step))).arrays


def table(found: Sequence[Found]) -> str:
    """The figures as Markdown."""
    head = (
        "| kill | processes | trains | codes | seconds to the end | told of | lost | loss | equal |"
    )
    lines = [head, "|---" * head[1:].count("|") + "|"]
    for one in found:
        case, codes = one.case, " ".join(map(str, one.codes))
        lines.append(
            f"| {case.kill} | {case.processes} | {case.kind} | {codes} | {one.seconds:.1f} | "
            f"{one.told_step} | {one.lost_steps} | {one.largest_difference:.0e} | "
            f"{'bit for bit' if one.equal else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases; 0 where each is as it must be, else 1."""
    parser = command.parser("kill_matrix", __doc__, "where the runs are")
    for name, values in (
        ("kills", KILLS),
        ("processes", ("1", "2", "4")),
        ("kinds", small_job.KINDS),
    ):
        several = ",".join(values)
        parser.add_argument(
            f"--{name}", type=command.some_of(values), default=several, help=f"some of {several}"
        )
    chosen = parser.parse_args(argv)
    work = files.absolute(chosen.work)
    matrix, found, faults = Matrix(work), [], []
    for kind, processes, kill in itertools.product(chosen.kinds, chosen.processes, chosen.kills):
        found.append(matrix.run(Case(kill, int(processes), kind)))
        faults += found[-1].faults
        print(table(found).splitlines()[-1], flush=True)
    files.write_text(files.join(work, "kill_matrix.md"), table(found))
    figures = files.join(work, "kill_matrix.json")
    files.write_json(figures, [*map(dataclasses.asdict, found)])
    return command.ended(faults, figures)


if __name__ == "__main__":
    sys.exit(main())
