"""The runs that the tests of `run` share, and how they compile."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_run

from astrollava_jax.run.train import train


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished run."""

    file: str
    out: Path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> str:
    """Where compiled programs are kept, for the tests that run the same one again."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def quickly_compiled(compiled):
    """For the tests of a module."""
    with small_run.quickly(compiled):
        yield


@pytest.fixture(scope="session")
def secrets() -> Iterator[dict[str, str]]:
    """What the environment of every run holds, and no file may."""
    found = {name: f"{name[:3].lower()}_5ecret5ecret" for name in small_run.SECRETS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="session")
def sky(tmp_path_factory, secrets) -> Path:
    """A folder with the model `base` and the records `train` and `heldout`."""
    folder = tmp_path_factory.mktemp("sky")
    small_run.write_model(folder / "base")
    small_run.write_records(folder)
    return folder


@pytest.fixture(scope="session")
def stage1(sky, compiled) -> Done:
    """Stage 1, without interruption, over all devices: the projector is fresh, and trains."""
    init = small_run.fresh_projector(sky / "base")
    with small_run.quickly(compiled):
        return _trained(small_run.run_file(sky, 1, init, sky / "one"))


@pytest.fixture(scope="session")
def stage2(sky, stage1, compiled) -> Done:
    """Stage 2, started from the run directory of stage 1: projector and decoder train."""
    init = small_run.model_at(stage1.out)
    with small_run.quickly(compiled):
        return _trained(small_run.run_file(sky, 2, init, sky / "two"))


def _trained(file: str) -> Done:
    run = small_run.read_run(file)
    train(run)
    return Done(file, Path(run.out))
