"""How long every sample is: measured once, in parallel, and kept on disk.

Packing needs only this of a record, and finding it means to tokenise everything; pictures are not
decoded: of those that are cut into tiles the header is read.
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import hashlib
import io
import itertools
import json
import multiprocessing
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import rich.console
import rich.progress
from jaxtyping import Int32

from astrollava_jax import files
from astrollava_jax.data import chat
from astrollava_jax.data import workers as worker_processes
from astrollava_jax.data.example import Turn
from astrollava_jax.data.faults import Fault
from astrollava_jax.data.image import ImageError
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import CHECKSUMS

PARALLEL_FROM = 4000
"""Records above which worker processes are started: it takes them seconds to begin."""

_CHUNK = 256
_FORMAT = 3
_SHOWN = 10
_PROBE = (Turn("human", "What is this?"), Turn("assistant", "A star.")) * 2
_PROBED_BYTES = 1 << 16
_COLUMNS = ("tokens", "images", "learned", "whole")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Per record of a mixture, by record id; one that gives no sample has length 0."""

    tokens: Int32[np.ndarray, "records"]
    """Positions, after the cut at the row's length."""
    images: Int32[np.ndarray, "records"]
    """A tile is an image."""
    learned: Int32[np.ndarray, "records"]
    """Positions with loss."""
    whole: Int32[np.ndarray, "records"]
    """Positions before the cut."""
    faults: tuple[Fault, ...] = ()

    @property
    def num_cut(self) -> int:
        """How many samples are longer than a row."""
        return int(np.count_nonzero(self.whole > self.tokens))

    @property
    def unreadable(self) -> tuple[Fault, ...]:
        """The records that are damaged; the other faults are refusals."""
        return tuple(fault for fault in self.faults if fault.damaged)

    def stretched(self, length: int) -> "Lengths":
        """What the lengths would be in longer rows: enough to tell how full these would be."""
        return dataclasses.replace(self, tokens=np.minimum(self.whole, length))


def measure(
    reader: Reader,
    folder: files.Where,
    *,
    workers: int = 0,
    allow_unlearned: int = 0,
    allow_unreadable: float = 1.0,
    show: bool = False,
    keep: bool = True,
) -> Lengths:
    """The lengths of all records of a mixture.

    Args:
        reader: of the mixture.
        folder: where measured lengths are kept, one file per set.
        workers: processes to measure with.
        allow_unlearned: how many samples may have no learned token.
        allow_unreadable: which fraction of the records may be damaged.
        show: whether to draw a progress bar, on a terminal.
        keep: whether to write what was measured.

    Raises:
        ValueError: if more records than allowed are damaged, or have no learned token; names them.
        StorageError, FileNotFoundError: if records cannot be read.
        WorkerDied: if one of the processes did.
    """
    found, measured, start = [], {}, 0
    for part in reader.parts:
        path = files.join(folder, f"lengths-{_key(reader, part)}.npz")
        kept = _read(path) if files.exists(path) else None
        if kept is not None:
            found.append(kept)
        else:
            records = range(start, start + len(part.source))
            measured[path] = _measure_all(reader, records, workers, show)
            found.append(measured[path])
        start += len(part.source)
    lengths = _concatenate(found)
    # What is refused is not kept: it may be mended. What a run began with is, or it would end
    # with another order of records than it began with.
    _check_readable(lengths, allow_unreadable)
    for path, part_lengths in measured.items() if keep else ():
        _write(path, part_lengths)
    _check_learned(reader, lengths, allow_unlearned)
    return lengths


def fingerprint(source: TFRecordSource) -> str:
    """A hash that changes with a set's records, of what can be known without reading them all."""
    digest = hashlib.sha256(f"{len(source)} records".encode())
    checksums = files.join(source.folder, CHECKSUMS)
    if files.exists(checksums):
        digest.update(files.read_bytes(checksums))
    for shard in source.shards:
        path = files.join(source.folder, shard)
        digest.update(f"{shard} {files.size_bytes(path)}".encode())
        digest.update(files.RangeReader(path).read(0, _PROBED_BYTES))
    return digest.hexdigest()


def _key(reader: Reader, part: Part) -> str:
    """Names a file of lengths after everything that they follow from."""
    probe = chat.render("probe", _PROBE, "a star", part.template, reader.tokenizer, 1)
    facts = [
        _FORMAT,
        fingerprint(part.source),
        reader.tokenizer.fingerprint(),
        part.template,
        # Renderers change too: what they make of a probe tells.
        probe.tokens.tolist(),
        probe.learned.tolist(),
        reader.facts.tokens,
        reader.length,
    ]
    if part.image == "anyres":
        facts += [reader.facts.size, reader.facts.patch, reader.facts.grid]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _measure_all(reader: Reader, records: range, workers: int, show: bool) -> Lengths:
    """Measures records, in chunks, in order."""
    chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        console=console, transient=True, disable=not (show and console.is_terminal)
    ) as progress:
        task = progress.add_task("Measuring records", total=len(records))
        found = []
        for lengths in _measure_chunks(
            reader, chunks, workers if len(records) > PARALLEL_FROM else 0
        ):
            found.append(lengths)
            progress.advance(task, len(lengths.tokens))
    return _concatenate(found)


def _measure_chunks(reader: Reader, chunks: Sequence[range], workers: int) -> Iterator[Lengths]:
    if not workers:
        yield from (_measure_chunk(reader, chunk) for chunk in chunks)
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (reader,)
    ) as pool:
        try:
            with worker_processes.shielded():
                results = pool.map(_measure_in_worker, chunks)
            yield from results
        except concurrent.futures.process.BrokenProcessPool:
            raise worker_processes.WorkerDied("while records were measured") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_reader_of_worker: Reader | None = None
"""Set once in each worker process, so that it does not travel with every chunk."""


def _begin_worker(reader: Reader) -> None:
    global _reader_of_worker
    worker_processes.begin()
    _reader_of_worker = reader


def _measure_in_worker(chunk: range) -> Lengths:
    assert _reader_of_worker is not None
    return _measure_chunk(_reader_of_worker, chunk)


def _measure_chunk(reader: Reader, chunk: range) -> Lengths:
    table = {name: np.zeros(len(chunk), np.int32) for name in _COLUMNS}
    faults = []
    for row, record in enumerate(chunk):
        name = ""
        try:
            content = reader.read(record)
            name = content.id
            words = reader.words(record, content)
        except ValueError as error:
            faults.append(Fault.of(error, name, reader.where(record)))
            continue
        table["tokens"][row] = len(words.tokens)
        table["images"][row] = words.num_images
        table["learned"][row] = words.num_learned
        table["whole"][row] = words.whole
    return Lengths(**table, faults=tuple(faults))


def _concatenate(found: Sequence[Lengths]) -> Lengths:
    table = {name: np.concatenate([getattr(part, name) for part in found]) for name in _COLUMNS}
    return Lengths(**table, faults=tuple(fault for part in found for fault in part.faults))


def _write(path: str, lengths: Lengths) -> None:
    faults = json.dumps([dataclasses.astuple(fault) for fault in lengths.faults])
    table = {name: getattr(lengths, name) for name in _COLUMNS}
    with files.publish(path) as handle:
        np.savez(handle, faults=np.array(faults), **table)


def _read(path: str) -> Lengths | None:
    """The lengths in a file; None where it is damaged, for they can be measured again."""
    try:
        with np.load(io.BytesIO(files.read_bytes(path))) as stored:
            faults = tuple(Fault(*fault) for fault in json.loads(str(stored["faults"])))
            return Lengths(**{name: stored[name] for name in _COLUMNS}, faults=faults)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _check_readable(lengths: Lengths, allowed: float) -> None:
    unreadable = lengths.unreadable
    if len(unreadable) <= allowed * len(lengths.tokens):
        return
    shown = [f"  {fault.where}: {fault.why}" for fault in unreadable[:_SHOWN]]
    shown += ["  ..."] if len(unreadable) > _SHOWN else []
    raise ValueError(
        f"{len(unreadable)} of {len(lengths.tokens)} records cannot be read, more than "
        f"bad_records.max_fraction {allowed:g} allows:\n" + "\n".join(shown)
    )


def _check_learned(reader: Reader, lengths: Lengths, allowed: int) -> None:
    unlearned = np.flatnonzero(lengths.learned == 0)
    count = len(unlearned) - len(lengths.unreadable)
    if count <= allowed:
        return
    named = (line for record in unlearned.tolist() if (line := _name(reader, record)))
    shown = [f"  {line}" for line in itertools.islice(named, _SHOWN)]
    shown += ["  ..."] if count > _SHOWN else []
    raise ValueError(
        f"{count} of {len(lengths.tokens)} samples have no learned token ({allowed} are allowed):\n"
        + "\n".join(shown)
    )


def _name(reader: Reader, record: int) -> str | None:
    """Which record it is and why nothing is learned of it; None where it cannot be read."""
    try:
        content = reader.read(record)
    except ValueError:
        return None
    try:
        whole = reader.words(record, content).whole
    except ImageError:
        return None
    except ValueError as error:
        return f"{error} ({reader.where(record)})"
    why = "the assistant says nothing"
    if whole > reader.length:
        why += f" before position {reader.length} of {whole}"
    return f"record {content.id!r}: {why} ({reader.where(record)})"
