"""The input of this package as a run has it: records, a plan of packed rows, worker processes."""

import math

import numpy as np
from jaxtyping import UInt8

from astrollava_jax import files
from astrollava_jax.bench.input_job import SEED, Job
from astrollava_jax.data.lengths import measure
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import WINDOW, BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Batches, Pipeline
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tokenizer import Tokenizer

ROWS = 8
"""Per step."""


class Ours:
    """Steps, as far as anybody takes them.

    Args:
        job: the records are its.
        what: `original` or `small`.
        workers: processes that make rows.
        images: at least so many are there to take.
        length: positions of a row.
    """

    def __init__(self, job: Job, what: str, workers: int, images: int, length: int):
        source = TFRecordSource(job.records(what))
        tokenizer = Tokenizer.from_folder(job.tokenizer_folder)
        reader = Reader([Part(source, "plain", job.mode)], tokenizer, job.facts, length)
        lengths = measure(reader, files.join(job.folder, "plan"), keep=False)
        # One epoch that fills whole windows, so that rows are as full as in a large set.
        passes = max(1, math.ceil(WINDOW / len(source)))
        mixture = Mixture([source], [float(passes)], SEED)
        epochs = math.ceil(images / (passes * len(source)))
        config = BatchConfig(rows=ROWS, length=length)
        self.plan = RunPlan(mixture, lengths, config, epochs=epochs)
        self.count = len(source)
        self._reader = reader
        self._pipeline = Pipeline(self.plan, reader, workers=workers)
        self._batches: Batches | None = None
        self._step = 0

    def take(self) -> int:
        """Takes a step; how many pictures it holds."""
        if self._batches is None:
            self._batches = self._pipeline.batches(self._step)
        found = next(self._batches)
        assert not found.faults
        self._step += 1
        return self.plan.samples(self._step - 1)

    def encoded(self, number: int) -> bytes:
        """The picture of a record, as it stands there."""
        return self._reader.read(number).images[0]

    def picture(self, number: int) -> UInt8[np.ndarray, "1 h w 3"]:
        """The picture of a record as the tower sees it: what a worker does but for the words."""
        return self._reader.pixels(number, self.encoded(number))

    def pixels(self, count: int) -> UInt8[np.ndarray, "count h w 3"]:
        """Of the first photographs, by a pipeline of their own."""
        found: dict[int, np.ndarray] = {}
        with self._pipeline.batches() as batches:
            for step, batch in enumerate(batches):
                for row, slots in enumerate(self.plan[step]):
                    for place, slot in enumerate(slots):
                        if slot.record < count:
                            found[slot.record] = batch.batch.images[row, place]
                if len(found) == count:
                    break
        return np.stack([found[record] for record in range(count)])

    def close(self) -> None:
        """Ends the workers."""
        if self._batches is not None:
            self._batches.close()
