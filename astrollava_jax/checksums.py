"""Checksums: what every byte of a folder's files was, kept beside them, and compared with it.

A list of checksums is canonical JSON that holds its own checksum: there is one way to write it, so
that no byte of it can change unseen.

    {"checksum": "5d1a9c3e", "files": {"config.yaml": {"bytes": 812, "crc32c": "e3069283"}}}
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c

from astrollava_jax import files

CHECKSUMS = "checksums.json"
"""The list of a whole folder: an export, or the beginning of a run."""

_PIECE_BYTES = 1 << 22


def canonical(content: Mapping[str, Any]) -> bytes:
    """The one way to write a JSON object, with its own checksum in it."""
    return _dump({**content, "checksum": _hex(google_crc32c.value(_dump(content)))})


def read_canonical(path: str) -> dict[str, Any]:
    """The content of a file that `canonical` made, without the checksum.

    Raises:
        ValueError: if any byte of it is another than was written; names the file.
    """
    raw = files.read_bytes(path)
    try:
        content = json.loads(raw)
        del content["checksum"]
        whole = canonical(content) == raw
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: expected a list that holds its own checksum, found another")
    return content


def of_bytes(content: bytes) -> dict[str, Any]:
    """Size and CRC32C of what a file holds, or will hold."""
    return {"bytes": len(content), "crc32c": _hex(google_crc32c.value(content))}


def of_file(path: str) -> dict[str, Any]:
    """Size and CRC32C of a file, read a piece at a time."""
    crc = size = 0
    with files.open_read(path) as handle:
        while piece := handle.read(_PIECE_BYTES):
            crc, size = google_crc32c.extend(crc, piece), size + len(piece)
    return {"bytes": size, "crc32c": _hex(crc)}


def of_files(folder: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and CRC32C of some files of a folder."""
    return {name: of_file(files.join(folder, name)) for name in names}


def faults(folder: str, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs in the files of a folder: each is named, with what was expected and found."""
    return [fault for name, entry in expected.items() if (fault := _fault(folder, name, entry))]


def write_list(folder: str, names: Iterable[str] | None = None, **others: bytes) -> None:
    """Writes `checksums.json` for the files of a folder, all unless `names` says which.

    `others` will be written later.
    """
    if names is None:
        names = (name for name in files.walk(folder) if name != CHECKSUMS)
    found = of_files(folder, names)
    found |= {name: of_bytes(content) for name, content in others.items()}
    files.write_bytes(files.join(folder, CHECKSUMS), canonical({"files": found}))


def read_list(folder: str) -> dict[str, dict[str, Any]]:
    """What `write_list` wrote.

    Raises:
        ValueError: if it is damaged or missing.
    """
    path = files.join(folder, CHECKSUMS)
    if not files.exists(path):
        raise ValueError(f"{path}: expected the checksums of the files beside it, found nothing")
    return read_canonical(path)["files"]


def _fault(folder: str, name: str, expected: Mapping[str, Any]) -> str | None:
    path = files.join(folder, name)
    if name.startswith("/") or ".." in name.split("/"):
        return f"{name!r}: expected the name of a file below {folder}"
    if files.identity(path) is None:  # a folder that may not be entered raises
        return f"{path}: expected {expected['bytes']} bytes, found no file"
    if files.is_folder(path):
        return f"{path}: expected {expected['bytes']} bytes, found a folder"
    if (size := files.size_bytes(path)) != expected["bytes"]:
        return f"{path}: expected {expected['bytes']} bytes, found {size}"
    try:
        found = of_file(path)["crc32c"]
    except PermissionError:
        raise  # nothing is known of the file
    except OSError as error:
        return f"{path}: expected crc32c {expected['crc32c']}, found {error.strerror}"
    if found != expected["crc32c"]:
        return f"{path}: expected crc32c {expected['crc32c']}, found {found}"
    return None


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _hex(crc: int) -> str:
    return f"{crc:08x}"
