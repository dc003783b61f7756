"""Opens, reads, lists and publishes paths: with `ranges`, all that touches the file system.

Paths are strings. A second kind of storage (a bucket) is added here and nowhere else.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from astrollava_jax.ranges import RangeReader as RangeReader

Where = str | os.PathLike[str]

_UNFINISHED = r"\..+\.[a-z0-9_]{8}\.part"
"""The names of what is being published. A process that is killed leaves it behind. Nothing tells it
from what a living process, of this machine or not, still writes: only who holds the folder's lock
may remove it."""


def join(folder: Where, *parts: str) -> str:
    """The path of `parts` below `folder`."""
    return os.path.join(folder, *parts)


def name(path: Where) -> str:
    """The last part of a path."""
    return os.path.basename(absolute(path))


def exists(path: Where) -> bool:
    """Whether a file or folder stands at `path`."""
    return os.path.exists(path)


def is_folder(path: Where) -> bool:
    """Whether `path` is a folder."""
    return os.path.isdir(path)


def size_bytes(path: Where) -> int:
    """The size of a file in bytes."""
    return os.path.getsize(path)


def absolute(path: Where) -> str:
    """The path as it reads from anywhere; `~` is expanded, links are kept."""
    return os.path.abspath(os.path.expanduser(path))


def resolved(path: Where) -> str:
    """The path behind all links."""
    return os.path.realpath(os.path.expanduser(path))


def relocated(path: Where, before: Where, now: Where) -> str:
    """Where `path` stands if it moved together with a folder, from `before` to `now`."""
    return os.path.normpath(os.path.join(now, os.path.relpath(path, before)))


def names(folder: Where, pattern: str = ".*") -> list[str]:
    """The sorted names in `folder` that match the regular expression whole.

    What is being published, or was when its process was killed, is passed over.
    """
    published = (name for name in os.listdir(folder) if not re.fullmatch(_UNFINISHED, name))
    return sorted(name for name in published if re.fullmatch(pattern, name))


def walk(folder: Where) -> list[str]:
    """The names of all files below `folder`, seen from it, with `/` between their parts.

    A linked folder is a name like a file's: what it leads to, which may be `folder`, is not listed.
    """
    found = []
    for name in names(folder):
        path = join(folder, name)
        inside = walk(path) if is_folder(path) and not os.path.islink(path) else None
        found += [name] if inside is None else [f"{name}/{below}" for below in inside]
    return found


def remove_unfinished(folder: Where) -> None:
    """Removes what killed processes were publishing into `folder`; only for who holds its lock."""
    for name in os.listdir(folder):
        if re.fullmatch(_UNFINISHED, name):
            remove(join(folder, name))


def make_folder(path: Where) -> str:
    """Makes a folder and its parents, unless they are there; returns the path."""
    os.makedirs(path, exist_ok=True)
    return str(path)


def remove(path: Where) -> None:
    """Removes a file or a whole folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def move(source: Where, target: Where) -> None:
    """Renames a file or folder within one storage."""
    os.replace(source, target)
    _keep_names(os.path.dirname(os.path.abspath(target)))


def open_read(path: Where) -> IO[bytes]:
    """Opens a file for reading bytes."""
    return open(path, "rb")


def open_append(path: Where) -> IO[str]:
    """Opens a text file at its end, line by line flushed, for logs."""
    return open(path, "a", encoding="utf-8", buffering=1)


def read_bytes(path: Where) -> bytes:
    """The bytes of a file."""
    with open_read(path) as handle:
        return handle.read()


def read_text(path: Where) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: if the bytes are not UTF-8; names the file.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, found {error.reason}") from None


def read_json(path: Where) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if the text is not JSON; names the file and the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: expected JSON, found {error.msg} at line {error.lineno}"
        ) from None


def read_json_object(path: Where) -> dict[str, Any]:
    """The content of a JSON file that must hold a mapping; a ValueError names the file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


@contextlib.contextmanager
def locked(path: Where) -> Iterator[Callable[[], str | None]]:
    """Holds a lock, which ends with the process at the latest; BlockingIOError if another does.

    Gives what says why the lock is not at its path any more, or None as long as it is.
    """
    with open(path, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            # A file system without locks: two writers are then the user's to avoid.
        yield lambda: _displaced(handle, path)


def _displaced(handle: IO[bytes], path: Where) -> str | None:
    """Why an open file is not the one at its path any more, or None."""
    try:
        if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
            return None
    except FileNotFoundError:
        return "was removed or moved away, or what it lies on is not mounted any more"
    except OSError as error:  # what a mount that vanishes leaves: ESTALE, ENOTCONN, EIO
        return f"cannot be reached any more ({error.strerror})"
    return "was replaced by another one"


@contextlib.contextmanager
def publish(path: Where) -> Iterator[IO[bytes]]:
    """Gives a file to write that appears under `path` only when the block ends well."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=folder, prefix=f".{os.path.basename(path)}.", suffix=".part"
    )
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _keep_names(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def publish_folder(path: Where) -> Iterator[str]:
    """Gives an empty folder to fill that appears under `path` only when the block ends well.

    Where `path` is a link, it appears where the link leads.

    Raises:
        FileExistsError: if `path` is there and is not an empty folder, or one that cannot be
            replaced.
    """
    target = resolved(path)
    if os.path.lexists(target):
        _check_replaceable(path, target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = _folder_beside(target)
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folder_beside(target: str) -> str:
    parent, name = os.path.split(target)
    return tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=".part")


def _check_replaceable(path: Where, target: str) -> None:
    """Raises unless an empty folder is at `target`, and goes aside and back when it is moved."""
    if not os.path.isdir(target) or os.listdir(target):
        raise FileExistsError(f"{path} exists: choose another name, or remove it first")
    try:
        aside = _folder_beside(target)
        try:
            os.replace(target, aside)
            os.replace(aside, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(aside)
    except OSError as error:
        raise FileExistsError(
            f"{path} is an empty folder that cannot be replaced ({error.strerror}), as a mount "
            "point cannot: name a new folder in it"
        ) from None


def write_bytes(path: Where, content: bytes) -> None:
    """Writes a file whole, or not at all."""
    with publish(path) as handle:
        handle.write(content)


def write_text(path: Where, content: str) -> None:
    """Writes a UTF-8 file whole, or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Where, content: Any) -> None:
    """Writes a JSON file whole, or not at all."""
    write_bytes(path, as_json(content))


def as_json(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _keep_names(folder: str) -> None:
    """Lets a rename outlive a machine that vanishes; a file system that cannot is left as it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
