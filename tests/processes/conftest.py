"""The run that the tests of processes disturb, and the same one undisturbed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import small_run

from astrollava_jax.bench.processes import Processes

STEPS = {"steps": 40, "checkpoint.every_steps": 10, "evaluate.every_steps": 2}
"""Long enough to be met on its way; it evaluates so often that a signal meets it at that too."""


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A run's file, its whole run on two devices of one process, and what was compiled for it."""

    file: str
    whole: Path
    compiled: str

    def start(self, out: Path, count: int = 1, devices: int = 2, **how: Any) -> Processes:
        """The same run, somewhere else."""
        overrides = {**STEPS, **how.pop("overrides", {})}
        return Processes(
            self.file, out, count, devices, overrides=overrides, compiled=self.compiled, **how
        )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """Stage 1 on the simulated sky."""
    folder = tmp_path_factory.mktemp("tiny")
    small_run.write_model(folder / "base")
    small_run.write_records(folder)
    init = small_run.fresh_projector(folder / "base")
    file = small_run.run_file(folder, 1, init, folder / "whole")
    found = Tiny(file, folder / "whole", str(folder / "compiled"))
    with found.start(found.whole) as run:
        run.complete()
    return found
