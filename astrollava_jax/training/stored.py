"""Reads single arrays of a saved step, past Orbax, and compares them with their fingerprints."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore

from astrollava_jax import files
from astrollava_jax.training import manifest
from astrollava_jax.training.fingerprint import Fingerprint, Twin
from astrollava_jax.training.items import OPTIONAL, by_name
from astrollava_jax.training.steps import steps

TRAINABLE = "trainable"


def open_array(step_folder: str, item: str, name: str) -> Any:
    """An array of a step as tensorstore knows it; nothing is read yet."""
    base = {"driver": "file", "path": files.join(step_folder, item, "")}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,  # a lost chunk is an error, no zeros
    }
    return tensorstore.open(spec, read=True).result()


def holds(step_folder: str, item: str, like: Any) -> bool:
    """Whether a step has an item: one that a run can do without, in the very shape of `like`."""
    if not files.is_folder(files.join(step_folder, item)):
        return False
    return item not in OPTIONAL or all(
        open_array(step_folder, *name.split("/", 1)).shape == array.shape
        for name, array in by_name({item: like}).items()
    )


def fingerprint(step_folder: str, item: str, name: str) -> Fingerprint:
    """The fingerprint of an array as its files give it, read a chunk at a time."""
    array = open_array(step_folder, item, name)
    twin = Twin(array.shape)
    sides = array.chunk_layout.read_chunk.shape or array.shape
    starts = [range(0, size, max(1, side)) for size, side in zip(array.shape, sides)]
    for start in itertools.product(*starts):
        index = tuple(slice(at, at + side) for at, side in zip(start, sides))
        cut = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(index, array.shape))
        twin.add(np.asarray(array[cut].read().result()), start)
    return twin.value


def read_back(path: str, prints: Mapping[str, Fingerprint], names: list[str]) -> list[str]:
    """Where what stands in the files is not what was on the devices."""
    differing = []
    for address in names:
        item, _, name = address.partition("/")
        found = fingerprint(path, item, name)
        if found != prints[address]:
            differing.append(
                f"{path}: {address}: expected fingerprint {prints[address]}, read back {found}"
            )
    return differing


class Trained(Mapping[str, np.ndarray]):
    """The trained weights of a good step by address; each is read when it is asked for.

    The step's files are verified before the first is read, and each array when it is. A run that
    goes on may remove the step meanwhile: that is told as such.

    Args:
        folder: the folder of checkpoints.
        step: the step.
        addresses: what trained.
        run: what tells the run from others, where it is known.
    """

    def __init__(self, folder: str, step: int, addresses: Sequence[str], run: str | None = None):
        self._run = run
        self._folder, self._step, self._addresses = files.absolute(folder), step, addresses
        self.path = files.join(self._folder, str(step))

    def __getitem__(self, address: str) -> np.ndarray:
        if address not in self._addresses:
            raise KeyError(address)
        expected = self._expected[f"{TRAINABLE}/{address}"]
        with self._standing(), readable(self.path):
            array = np.asarray(open_array(self.path, TRAINABLE, address).read().result())
        twin = Twin(array.shape)
        twin.add(array, (0,) * array.ndim)
        if twin.value != expected:
            raise ValueError(
                f"{self.path}: {address}: expected fingerprint {expected}, found {twin.value}: it "
                "changed while it was read; try again, and distrust this machine"
            )
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    @functools.cached_property
    def _expected(self) -> Mapping[str, Fingerprint]:
        """The fingerprints, once the files that hold the weights were found whole."""
        below = (f"{TRAINABLE}/", "_CHECKPOINT_METADATA")
        found = manifest.faults(self.path, below=below, run=self._run)
        with self._standing():
            if found:
                paths = self._others()
                instead = ", ".join(p for p in paths if not manifest.faults(p, run=self._run))
                raise ValueError(
                    f"{self.path}: this checkpoint is damaged; whole ones, to be named in its "
                    f"place: {instead or 'none'}\n  " + "\n  ".join(found)
                )
            return manifest.read(self.path).arrays

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        """Says that the step was removed, where that is what an error came of."""
        try:
            yield
        except (ValueError, OSError) as error:
            if files.exists(self.path):
                raise
            raise ValueError(
                f"{self.path}: this checkpoint was removed or renamed while it was read, as a run "
                "that goes on does with old ones: start the command again, with one of these: "
                + (", ".join(self._others()) or "none is left")
            ) from error

    def _others(self) -> list[str]:
        """The other steps that were whole when they were saved."""
        others = [step for step in steps(self._folder) if step != self._step]
        return [files.join(self._folder, str(step)) for step in others]


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Says in one sentence that a step cannot be read; libraries say it in any kind of error."""
    try:
        yield
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"{path}: this checkpoint cannot be read ({type(error).__name__}: {first}), though its "
            "files are what was written: a newer version may have done so, or the storage fails"
        ) from error
