"""Carries out a plan: loads, decodes and builds rows in worker processes, and batches them.

Everything after the plan is random access, so that a run starts at any step, and the batches are
the same for any number of workers and of hosts. A worker makes single rows, which are put together
in a thread of this process: a step is then made by all workers at once, and little memory is
shared.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from grain.experimental import (
    DatasetOptions,
    ThreadPrefetchDatasetIterator,
    WithOptionsIterDataset,
)
from jaxtyping import Int32, UInt8

from astrollava_jax.batch import Batch
from astrollava_jax.data import workers as worker_processes
from astrollava_jax.data.faults import Fault, StorageError
from astrollava_jax.data.pack import RunPlan
from astrollava_jax.data.rows import Row, RowBuilder
from astrollava_jax.data.samples import Reader

_BATCHES_AHEAD = 2
_ROWS_AHEAD = 2
"""Per worker: enough to keep it busy, few enough for the shared memory of a container."""

_THREADS = 2
_DEAD_WORKER = "Worker process was terminated unexpectedly with (exit code -?[0-9]+)"
"""What Grain says of it, within a second."""
_SMALLEST_SHARED_BYTES = 1 << 10
"""Of an array that a worker hands over in shared memory. The pipe (64 KiB) must hold what is left
of two or three rows: a worker that is killed while it waits for room in the pipe leaves half a row
there, and the reader waits for the rest without end (seen at a length of 2048)."""


@dataclasses.dataclass(frozen=True)
class StepData:
    """What one step gets from the data."""

    batch: Batch
    """NumPy; the rows of this process."""
    records: list[str]
    """Ids of the samples in these rows, in the step's order; of an unreadable one, its place."""
    faults: list[Fault]
    """Of these rows."""
    filled: float
    """The filled part of the whole step's positions."""


class Pipeline:
    """The batches of a run, from any step on.

    Args:
        plan: what each step holds.
        reader: of the records that were planned.
        workers: processes that make rows; with 0, threads of this process do.
        parts: which of the equal parts of each micro-batch's rows this process makes,
        of: and how many there are.
        micro_batches: equal parts of every step.

    Raises:
        ValueError: if the plan's rows cannot be shared among the processes.
    """

    def __init__(
        self,
        plan: RunPlan,
        reader: Reader,
        *,
        workers: int = 0,
        parts: Sequence[int] = (0,),
        of: int = 1,
        micro_batches: int = 1,
    ):
        if plan.rows % (of * micro_batches):
            raise ValueError(
                f"a step has {plan.rows} rows, which {of * micro_batches} parts cannot share: plan "
                "a multiple of their number"
            )
        self.plan = plan
        self._workers = workers
        numbers = np.arange(plan.rows).reshape(micro_batches, of, -1)
        self._rows: list[int] = numbers[:, list(parts)].reshape(-1).tolist()
        self._build_row = RowBuilder(reader, plan.shape)

    def batches(self, start: int = 0) -> "Batches":
        """The steps from `start` to the end of the run; the workers begin at once."""
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags, and nobody else here has any
        steps = ThreadPrefetchDatasetIterator(iter(self._steps(start)), _BATCHES_AHEAD)
        with worker_processes.shielded():
            steps.start_prefetch()
        return Batches(self.plan, steps, start)

    def _steps(self, start: int) -> grain.IterDataset[Row]:
        """The rows of each step from `start` on."""
        build = _PlannedRow(self.plan, self._build_row, self._rows)
        numbers = (start * len(self._rows), self.plan.total_steps * len(self._rows))
        # Grain would read far ahead, and its element is a whole row with its pictures.
        threads, ahead = (1, 1) if self._workers else (_THREADS, _ROWS_AHEAD)
        rows = (
            grain.MapDataset.range(*numbers)
            .map(build)
            .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        )
        if self._workers:
            rows = WithOptionsIterDataset(rows, DatasetOptions(min_shm_size=_SMALLEST_SHARED_BYTES))
            rows = rows.mp_prefetch(
                grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=_ROWS_AHEAD),
                worker_init_fn=_begin_worker,
            )
        return rows.batch(len(self._rows), drop_remainder=True, batch_fn=_stack)


class Batches(Iterator[StepData]):
    """Steps in their order; close it, or leave its `with` block, to end its workers."""

    def __init__(self, plan: RunPlan, steps: ThreadPrefetchDatasetIterator, start: int):
        self._plan = plan
        self._steps: ThreadPrefetchDatasetIterator | None = steps
        self._step = start

    def __next__(self) -> StepData:
        if self._steps is None or self._step >= self._plan.total_steps:
            self.close()
            raise StopIteration
        rows = self._next(self._steps)
        self._step += 1
        return StepData(
            batch=rows.arrays,
            records=[name for _, name in sorted(rows.records)],
            faults=list(rows.faults),
            filled=self._plan.filled(self._step - 1),
        )

    def _next(self, steps: ThreadPrefetchDatasetIterator) -> Row:
        """The rows of the next step.

        Raises:
            StorageError, FileNotFoundError: if records cannot be read any more.
            WorkerDied: if a worker did.
        """
        try:
            return next(steps)
        except (StorageError, FileNotFoundError) as error:
            raise type(error)(str(error)) from None  # not with the frames of another process
        except RuntimeError as error:
            found = re.search(_DEAD_WORKER, str(error))
            if found is None:
                raise
            raise worker_processes.WorkerDied(found[1]) from None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, if they have not ended yet."""
        if self._steps is not None:
            self._steps.close()
        # Kept until the interpreter ends, it would be closed when half of Grain is gone.
        self._steps = None


@dataclasses.dataclass(frozen=True)
class _PlannedRow:
    """Makes the rows of a process by their number, counted over all steps of the run."""

    plan: RunPlan
    build_row: RowBuilder
    rows: Sequence[int]
    """Of every step, those that this process makes."""

    def __call__(self, number: int) -> "_Sent":
        step, place = divmod(number, len(self.rows))
        return _Sent.of(self.build_row(self.plan.row(step, self.rows[place])))


class _Sent(NamedTuple):
    """A row on its way between processes: each of its arrays costs a piece of shared memory."""

    numbers: Int32[np.ndarray, " n"]
    """All fields but the pictures, one behind the other."""
    sizes: tuple[int, ...]
    images: UInt8[np.ndarray, "I h w 3"]
    records: tuple[tuple[int, str], ...]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, row: Row) -> "_Sent":
        fields = [field for field in row.arrays if field is not row.arrays.images]
        sizes = tuple(map(len, fields))
        return cls(np.concatenate(fields), sizes, row.arrays.images, row.records, row.faults)

    def arrays(self) -> Batch:
        fields = np.split(self.numbers, np.cumsum(self.sizes)[:-1])
        fields.insert(Batch._fields.index("images"), self.images)
        return Batch(*fields)


def _stack(rows: Sequence[_Sent]) -> Row:
    """Many rows as one, their arrays with the leading dimension of `Batch`."""
    return Row(
        arrays=Batch(*(np.stack(field) for field in zip(*(row.arrays() for row in rows)))),
        records=tuple(record for row in rows for record in row.records),
        faults=tuple(fault for row in rows for fault in row.faults),
    )


def _begin_worker(worker: int, workers: int) -> None:
    worker_processes.begin()
