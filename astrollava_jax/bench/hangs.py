"""Makes real runs hang in every way, and measures how long it takes until they are ended. Linux.

    python -m astrollava_jax.bench.hangs --work DIR [--times 5]
        [--hangs step,input,worker,checkpoint]

step         the process waits in C for something that never comes, with the interpreter's lock held
input        a thread that makes rows never ends one
worker       a worker process never ends a row
checkpoint   a file of a checkpoint is never read

A run is the smallest model of the simulated sky, and may make no progress for ten seconds. Time is
counted from the last progress that it told its parent, until the parent has ended. A run must end
within the bound, with the code 75, must have printed the stack of what hung, and must leave no
process behind. The table goes to DIR/hangs.md, the figures to DIR/hangs.json.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import IO

from astrollava_jax import files
from astrollava_jax.bench import command, small_job
from astrollava_jax.bench.processes import RESUMABLE, Processes

BOUND_SECONDS = 10.0
STEPS, EVERY, AT = 24, 6, 14
"""Steps of a run, from one checkpoint to the next, and the last one before it hangs."""

_PATCH = """\
import importlib.machinery, os, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name == {module!r} else None
        if spec is not None:
            whole = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (whole(module), patch(module))
        return spec

def hang_here():
    import threading
    threading.Event().wait()

def patch(module):
{patch}

sys.meta_path.insert(0, Finder)
"""
"""What Python runs before anything else where it is called `sitecustomize`."""

_STEP = f"""\
    import ctypes, jax, types
    steps = []
    def device_get(tree):
        steps.append(0)
        while len(steps) > {AT}:
            ctypes.PyDLL(None).pause()
        return jax.device_get(tree)
    module.jax = types.SimpleNamespace(device_get=device_get, process_count=jax.process_count)
"""

_ROW = f"""\
    def call(self, number):
        if number // len(self.rows) >= {AT}:
            hang_here()
        return whole(self, number)
    whole, module._PlannedRow.__call__ = module._PlannedRow.__call__, call
"""

_READ_BACK = f"""\
    def read_back(path, *others):
        if path.endswith("/{2 * EVERY}"):
            hang_here()
        return whole(path, *others)
    whole, module.read_back = module.read_back, read_back
"""


@dataclasses.dataclass(frozen=True)
class Hang:
    """Where a run hangs, and what its end must tell."""

    module: str
    """What is patched in it makes the run hang."""
    patch: str
    workers: int
    waited_for: str
    stack: str
    """Of what hung, a function."""


HANGS = {
    "step": Hang("training.loop", _STEP, 0, "a step", "in device_get"),
    "input": Hang("data.pipeline", _ROW, 0, "input", "in hang_here"),
    "worker": Hang("data.pipeline", _ROW, 2, "input", "in hang_here"),
    "checkpoint": Hang("training.stored", _READ_BACK, 0, "a checkpoint", "in hang_here"),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of one."""

    hang: str
    code: int
    seconds: float
    """From the last progress to the end of the process that was started."""
    left: list[int]
    """Processes of it that are still there."""
    told: str

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        hang, found = HANGS[self.hang], []
        if self.code != RESUMABLE:
            found.append(f"ended with {self.code}, expected {RESUMABLE}")
        if self.seconds > BOUND_SECONDS:
            found.append(f"ended after {self.seconds:.2f} s, expected {BOUND_SECONDS:.0f} at most")
        if self.left:
            found.append(f"left processes: {self.left}")
        expected = ("no progress for", f"while it waited for {hang.waited_for}", hang.stack)
        found += [f"did not tell: {words}" for words in expected if words not in self.told]
        return [f"{self.hang}: {fault}" for fault in found]


def hang(name: str, work: str, out: str) -> Found:
    """One run; `small_job.write` has filled `work`."""
    how = HANGS[name]
    begin = files.make_folder(files.join(work, "patches", name))
    patch = _PATCH.format(module=f"astrollava_jax.{how.module}", patch=how.patch)
    files.write_text(files.join(begin, "sitecustomize.py"), patch)
    file = small_job.write_run(
        work, "stage1", out, steps=STEPS, every_steps=EVERY, workers=how.workers
    )
    paths = [begin, *filter(None, [os.environ.get("PYTHONPATH")])]
    with Processes(
        file,
        out,
        devices=2,
        overrides={"watchdog.floor_seconds": BOUND_SECONDS},
        variables={"PYTHONPATH": os.pathsep.join(paths)},
        compiled=files.join(work, "compiled"),
    ) as run:
        run.wait_for_step(EVERY)
        processes = run.tree(0)
        with _page(processes[1]) as page:
            (ended,) = run.ended()
            now = time.monotonic()
            last = json.loads(page.read().rstrip(b"\0"))["at"]
        return Found(name, ended.code, now - last, _left(processes), ended.told)


def _page(process: int) -> IO[bytes]:
    """What a child tells its parent: memory that both have open, without a name elsewhere."""
    opened = f"/proc/{process}/fd"
    for number in files.names(opened):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "memfd:astrollava" in os.readlink(f"{opened}/{number}"):
                return files.open_read(f"{opened}/{number}")
    raise RuntimeError(f"process {process} tells nobody anything")


def _left(processes: Sequence[int]) -> list[int]:
    """Those that do not end by themselves, within the two seconds that they have."""
    end = time.monotonic() + 2.0
    while (left := [p for p in processes if _is_there(p)]) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def _is_there(process: int) -> bool:
    try:
        return "State:\tZ" not in files.read_text(f"/proc/{process}/status")
    except OSError:
        return False


def table(found: Sequence[Found]) -> str:
    """The figures as Markdown."""
    lines = ["| hangs in | runs | seconds to the end: least | median | most |", "|---" * 5 + "|"]
    for name in HANGS:
        seconds = [one.seconds for one in found if one.hang == name]
        if seconds:
            figures = (min(seconds), statistics.median(seconds), max(seconds))
            told = " | ".join(f"{figure:.2f}" for figure in figures)
            lines.append(f"| {name} | {len(seconds)} | {told} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them all; 0 where each is as it must be, else 1."""
    parser = command.parser("hangs", __doc__, "where the runs are")
    parser.add_argument("--times", type=int, default=5, help="runs of each")
    several = ",".join(HANGS)
    parser.add_argument(
        "--hangs", type=command.some_of(HANGS), default=several, help=f"some of {several}"
    )
    arguments = parser.parse_args(argv)
    runs = rf"({'|'.join(HANGS)})-\d+"
    work = command.unused_folder(files.absolute(arguments.work), runs)
    small_job.write(work)
    found = []
    for number in range(arguments.times):
        for name in arguments.hangs:
            found.append(hang(name, work, files.join(work, f"{name}-{number}")))
            print(f"{name}: {found[-1].seconds:.2f} s", *found[-1].faults, sep="\n  ", flush=True)
    faults = [fault for one in found for fault in one.faults]
    files.write_text(files.join(work, "hangs.md"), table(found))
    figures = files.join(work, "hangs.json")
    files.write_json(figures, [*map(dataclasses.asdict, found)])
    print(table(found), end="")
    return command.ended(faults, figures)


if __name__ == "__main__":
    sys.exit(main())
