"""Manifests: what makes a saved step trusted, and how it is compared with what it says.

`manifest.<k>-of-<n>.json` is written by process `k` of `n` when the step stands on the disk and its
share was read back. It holds size and CRC32C of the files of that share, and of every array the
fingerprint that it had on the devices. A step is good when all parts are there: it was whole once.
Whether it still is, `faults` tells.
"""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from astrollava_jax import checksums, files
from astrollava_jax.training.fingerprint import Fingerprint

FORMAT = 1
PEER_SECONDS = 86_400
"""How long a process waits for the others with a save. A slow disk has time: the watchdog ends what
hangs, and JAX those whose peer is gone."""

_PART = r"manifest\.(\d+)-of-(\d+)\.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All parts of a step's manifest."""

    files: dict[str, dict[str, Any]]
    """Size and CRC32C by name, of every file of the step but the parts."""
    arrays: dict[str, Fingerprint]
    """By `<item>/<address>`."""
    progress: dict[str, int]
    """Where the run stood, by the names of `Progress`."""
    run: str | None
    """Whose step it is, where that is known."""
    saved_at: int
    """Seconds since 1970."""


def parts(step_folder: str) -> list[str]:
    """The names of the parts that are there."""
    return files.names(step_folder, _PART)


def is_trusted(step_folder: str) -> bool:
    """Whether every process has written its part: the step was whole when it was saved."""
    try:
        names = parts(step_folder)
    except (FileNotFoundError, NotADirectoryError):  # or removed just now
        return False
    whole = {part_name(process, len(names)) for process in range(len(names))}
    return bool(names) and set(names) == whole


def part_name(process: int, processes: int) -> str:
    """The name of the part of one process."""
    return f"manifest.{process}-of-{processes}.json"


def payload(step_folder: str) -> list[str]:
    """The names of the files that a manifest covers."""
    return [name for name in files.walk(step_folder) if not re.fullmatch(_PART, name)]


def share(sizes: Mapping[str, int], process: int, processes: int) -> list[str]:
    """The names that fall to one process: about as many bytes as to any other."""
    loads, own = [0] * processes, []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        loads[lightest] += sizes[name] + 1
        if lightest == process:
            own.append(name)
    return own


def write_part(
    step_folder: str,
    process: int,
    processes: int,
    *,
    arrays: Mapping[str, Fingerprint],
    progress: Mapping[str, int],
    saved_at: int,
    run: str | None = None,
    faults: Sequence[str] = (),
) -> None:
    """Writes the part of a process, with the checksums of its share of the files as they stand.

    With `faults`, it tells the others that the step must not be trusted.
    """
    sizes = {name: files.size_bytes(files.join(step_folder, name)) for name in payload(step_folder)}
    own = share(sizes, process, processes)
    content = {
        "format": FORMAT,
        "files": checksums.of_files(step_folder, own),
        "arrays": dict(arrays),
        "progress": dict(progress),
        "saved_at": saved_at,
        "run": run,
        "faults": list(faults),
    }
    path = files.join(step_folder, part_name(process, processes))
    files.write_bytes(path, checksums.canonical(content))


def read(step_folder: str) -> Manifest:
    """The manifest of a step.

    Raises:
        ValueError: if a part is missing, damaged, or tells of faults.
    """
    read = {
        name: checksums.read_canonical(files.join(step_folder, name)) for name in parts(step_folder)
    }
    found = [fault for part in read.values() for fault in part["faults"]]
    found += [
        f"{step_folder}/{name}: expected format {FORMAT}, found {part['format']}"
        for name, part in read.items()
        if part["format"] != FORMAT
    ]
    shared = [(part["arrays"], part["progress"]) for part in read.values()]
    if not is_trusted(step_folder) or any(other != shared[0] for other in shared):
        found.append(
            f"{step_folder}: expected manifest.<k>-of-<n>.json, all n of one save, found "
            + (", ".join(read) or "none")
        )
    if found:
        raise ValueError("\n  ".join(found))
    every = list(read.values())
    return Manifest(
        files={name: entry for part in every for name, entry in part["files"].items()},
        arrays={name: (lanes[0], lanes[1]) for name, lanes in every[0]["arrays"].items()},
        progress=every[0]["progress"],
        run=every[0].get("run"),
        saved_at=max(part["saved_at"] for part in every),
    )


def faults(
    step_folder: str,
    process: int = 0,
    processes: int = 1,
    below: Sequence[str] = ("",),
    run: str | None = None,
) -> list[str]:
    """What of a step is not as it was written: every file is named, with expected and found.

    Args:
        step_folder: the step.
        process: whose share of the files is read.
        processes: of so many.
        below: beginnings of names; others are not looked at. "" is every file.
        run: whose step it must be; None where that is not known.
    """
    try:
        manifest = read(step_folder)
    except ValueError as error:
        return str(error).split("\n  ")
    except PermissionError:
        raise  # nothing is known of the step
    except OSError as error:
        return [f"{error.filename or step_folder}: expected a manifest, found {error.strerror}"]
    strange = _misplaced(step_folder, manifest, run) if process == 0 else []
    sizes = {
        name: entry["bytes"]
        for name, entry in manifest.files.items()
        if name.startswith(tuple(below))
    }
    own = share(sizes, process, processes)
    expected = {name: manifest.files[name] for name in sorted(own)}
    return strange + checksums.faults(step_folder, expected)


def _misplaced(step_folder: str, manifest: Manifest, run: str | None) -> list[str]:
    """Whether a step stands under the name of another, or in the folder of another run."""
    name, step = files.name(step_folder).split(".")[0], manifest.progress.get("step")
    found = []
    if name.isdigit() and step is not None and int(name) != step:
        found.append(f"{step_folder}: expected step {name}, found a copy of step {step}")
    if run is not None and manifest.run != run:
        found.append(f"{step_folder}: expected run {run}, found a copy of run {manifest.run}")
    return found


def await_parts(path: str, processes: int) -> None:
    """Returns when every process has written its part of a manifest."""
    deadline = time.monotonic() + PEER_SECONDS
    while len(parts(path)) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {processes} parts, found {parts(path)}")
        time.sleep(0.05)


def kind(found: list[str]) -> str:
    """What happened to a step, in one word for a name."""
    words = {
        "own checksum": "manifest", "expected a manifest": "manifest",
        "manifest.<k>": "manifest", "no file": "missing",
        " bytes,": "size", "crc32c": "checksum", "fingerprint": "fingerprint",
        "found a copy of": "misplaced",
    }  # fmt: skip
    return next((kind for said, kind in words.items() if said in "\n".join(found)), "content")
