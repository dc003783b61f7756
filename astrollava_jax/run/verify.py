"""`verify`: whether what lies on a disk is still what was written, every byte of it."""

import dataclasses
import os
from collections.abc import Callable, Iterator

from astrollava_jax import checksums, files
from astrollava_jax.data import integrity, tfrecord
from astrollava_jax.run import directory
from astrollava_jax.training import manifest, steps

DEPTH = 4
"""So many folders below the one that is named are looked into."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found of one thing."""

    path: str
    kind: str
    files: int
    bytes: int
    faults: list[str]
    """Every damaged file, with what was expected and found."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What cannot be verified."""
    unknown: str = ""
    """In a word, why it is not known to be whole: there is nothing to compare it with, a run is
    writing it, or it has gone meanwhile."""

    def __str__(self) -> str:
        said = "DAMAGED" if self.faults else self.unknown or "ok"
        size = f", {self.files} files, {self.bytes:,} bytes" if self.files else ""
        lines = [f"{said:<8} {self.path}: {self.kind}{size}"]
        lines += [f"    {fault}" for fault in self.faults]
        lines += [f"    note: {note}" for note in self.notes]
        return "\n".join(lines)


def verify(path: str) -> Iterator[Verified]:
    """What is found of everything at `path` that can be verified, one after the other.

    Raises:
        FileNotFoundError: if nothing is at `path`.
        ValueError: if nothing there can be verified.
    """
    if not files.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    empty = True
    for found in _verified(path, DEPTH):
        empty = empty and bool(found.unknown)
        yield found
    if empty:
        raise ValueError(
            f"{path}: nothing here can be verified: expected a checkpoint (<step>/), a run "
            "directory, an export with checksums.json or a record set, or a folder of these"
        )


def _verified(path: str, depth: int) -> Iterator[Verified]:
    if not files.is_folder(path) or steps.is_left(files.name(path)):
        return
    for is_one, check in _KINDS:
        if is_one(path):
            yield check(path)
            break
    else:
        names = files.names(path) if depth else []
        if any(_is_checkpoint(files.join(path, name)) for name in names):
            numbers = sorted((n for n in names if n.isdigit()), key=int)  # not what was set aside
            below = [files.join(path, name) for name in numbers]
            yield from map(_checkpoint, [step for step in below if files.is_folder(step)])
            return
        for name in names:
            yield from _verified(files.join(path, name), depth - 1)
        return
    if files.is_folder(below := files.join(path, directory.CHECKPOINTS)):
        yield from _verified(below, depth - 1)


def _is_checkpoint(path: str) -> bool:
    if not files.name(path).split(".")[0].isdigit() or not files.is_folder(path):
        return False
    try:
        return bool(manifest.parts(path) or files.names(path, "_CHECKPOINT_METADATA|trainable"))
    except FileNotFoundError:
        return False  # a run has just removed it


def _checkpoint(path: str) -> Verified:
    """A step as it stands, while a run may write, replace and remove it."""
    before = files.identity(path)
    try:
        found = _writing(path) or _compared(path)
    except (FileNotFoundError, ValueError) as error:  # its files went while they were read
        found = Verified(path, "checkpoint", 0, 0, [str(error)])
    now = files.identity(path)
    if now is None:
        return _unknown(path, "checkpoint, removed or renamed before it was verified", "gone")
    return found if now == before or not found.faults else _checkpoint(path)


def _writing(path: str) -> Verified | None:
    """What there is to say of a step that a run has not finished yet."""
    run = directory.run_folder(path)
    if manifest.is_trusted(path) or run is None or not directory.is_alive(run[0]):
        return None
    return _unknown(path, "checkpoint, being written by a run that goes on", "writing")


def _unknown(path: str, kind: str, unknown: str) -> Verified:
    return Verified(path, kind, 0, 0, [], unknown=unknown)


def _compared(path: str) -> Verified:
    names = files.walk(path)
    faults = manifest.faults(path, run=_run_name(path))
    notes = []
    if not faults:
        covered = manifest.read(path).files
        notes = _uncovered(manifest.payload(path), covered)
    return Verified(path, "checkpoint", len(names), _bytes(path, names), faults, notes)


def _run_name(path: str) -> str | None:
    """Whose a checkpoint must be; None where no whole beginning of a run says so."""
    found = directory.run_folder(path)
    if found is None or directory.beginning_faults(found[0], only=(directory.BASE,)):
        return None
    return directory.run_name(found[0])


def _is_run(path: str) -> bool:
    known = (directory.BASE, directory.CONFIG, checksums.CHECKSUMS)
    inside = files.names(path)
    return (
        directory.BASE in inside
        or (sum(name in inside for name in known) > 1 and directory.SIDECARS in inside)
        or directory.is_alive(path)
    )


def _run(path: str) -> Verified:
    if not files.exists(files.join(path, directory.BASE)) and directory.is_alive(path):
        return _unknown(path, "beginning of a run, being written", "writing")
    names = []
    for name in filter(directory.is_beginning, files.names(path)):  # the rest may change meanwhile
        place = files.join(path, name)
        inside = (
            [f"{name}/{below}" for below in files.walk(place)] if files.is_folder(place) else []
        )
        names += inside or [name]
    faults = directory.beginning_faults(path)
    return Verified(path, "beginning of a run", len(names), _bytes(path, names), faults)


def _is_records(path: str) -> bool:
    inside = files.names(path)
    return "dataset_info.json" in inside or any(".tfrecord-" in name for name in inside)


def _records(path: str) -> Verified:
    """A record set: its checksums, and those that stand in its frames."""
    names = files.walk(path)
    faults, notes = [], []
    if tfrecord.CHECKSUMS in names:
        faults = integrity.checksum_faults(path)
    elif any(name.endswith(tfrecord.INDEX_SUFFIX) for name in names):
        lost = files.join(path, tfrecord.CHECKSUMS)
        faults = [f"{lost}: expected the checksums of the files beside it, found nothing"]
    else:  # another program wrote it
        notes = ["no checksums.json: only the checksums in the records were compared"]
    count = 0
    for name in names:
        if ".tfrecord-" in name and not name.endswith(tfrecord.INDEX_SUFFIX):
            records, found = integrity.frame_faults(files.join(path, name))
            count += records
            faults += found
    return Verified(path, f"{count} records", len(names), _bytes(path, names), faults, notes)


def _is_export(path: str) -> bool:
    return files.exists(files.join(path, checksums.CHECKSUMS)) or any(
        files.exists(files.join(path, name)) for name in _EXPORTED
    )


def _export(path: str) -> Verified:
    names = files.walk(path)
    if checksums.CHECKSUMS not in names:
        note = f"no {checksums.CHECKSUMS}: there is nothing to compare it with"
        size = len(names), _bytes(path, names)
        return Verified(path, "model", *size, [], [note], unknown="unknown")
    try:
        stated = checksums.read_list(path)
    except ValueError as error:
        return Verified(path, "model", len(names), _bytes(path, names), [str(error)])
    faults = checksums.faults(path, stated)
    uncovered = _uncovered([name for name in names if name != checksums.CHECKSUMS], stated)
    return Verified(path, "model", len(names), _bytes(path, names), faults, uncovered)


_EXPORTED = ("config.json", "astrollava.json", "adapter_config.json")

_KINDS: tuple[tuple[Callable[[str], bool], Callable[[str], Verified]], ...] = (
    (_is_checkpoint, _checkpoint),
    (_is_run, _run),
    (_is_records, _records),
    (_is_export, _export),
)
"""What can be verified: the first that a folder is."""


def _uncovered(names: list[str], covered: dict) -> list[str]:
    return [f"{name}: has no checksum" for name in names if name not in covered]


def _bytes(path: str, names: list[str]) -> int:
    return sum(files.size_bytes(files.join(path, name)) for name in names)
