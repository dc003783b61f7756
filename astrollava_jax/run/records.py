"""A run's data: sets, tokenizer and plan, joined; and its batches, brought to the devices."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from astrollava_jax import files
from astrollava_jax.batch import Batch, ImageFacts
from astrollava_jax.data.faults import visible
from astrollava_jax.data.lengths import Lengths, fingerprint, measure
from astrollava_jax.data.mixture import DataConfig, Mixture
from astrollava_jax.data.pack import BatchConfig, RunPlan
from astrollava_jax.data.pipeline import Pipeline, StepData
from astrollava_jax.data.samples import Part, Reader
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.processes import first
from astrollava_jax.run.stage import Stage
from astrollava_jax.sharding import gather, share_of_rows
from astrollava_jax.training.loop import Delivery

MOST_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains on, planned."""

    reader: Reader
    mixture: Mixture
    lengths: Lengths
    plan: RunPlan
    workers: int

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on: the sets' content, and the steps they make."""
        sets = [fingerprint(part.source) for part in self.reader.parts]
        return {"sets": sets, "steps": self.plan.total_steps}

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return sum(self.plan.samples(step) for step in range(self.plan.total_steps))


def number_of_workers(run: RunConfig) -> int:
    """The processes that decode pictures."""
    if run.workers != "auto":
        return run.workers
    return min(MOST_WORKERS, max(0, (os.cpu_count() or 1) - 1))


def training_data(
    run: RunConfig, tokenizer: Tokenizer, facts: ImageFacts, multiple: int, keep: bool = True
) -> Data:
    """The run's mixture, measured and planned; `keep` writes what was measured into `out`.

    Raises:
        ValueError: if a set, a sample or the batch cannot be used as the run says.
    """
    reader = make_reader(run.data, tokenizer, facts, run.batch.length)
    workers = number_of_workers(run)
    lengths = _measured(run, reader, workers=workers, show=True, keep=keep)
    mixture = Mixture(
        [part.source for part in reader.parts], [data.weight for data in run.data], run.seed
    )
    plan = RunPlan(
        mixture, lengths, run.batch, epochs=run.epochs, steps=run.steps, multiple=multiple
    )
    return Data(reader, mixture, lengths, plan, workers)


def _measured(run: RunConfig, reader: Reader, **how: Any) -> Lengths:
    """The lengths of all records: process 0 measures, and the others read what it has kept."""

    def here() -> Lengths:
        return measure(
            reader,
            files.join(run.out, "plan"),
            allow_unlearned=run.bad_records.unlearned,
            allow_unreadable=run.bad_records.max_fraction,
            **how,
        )

    if jax.process_count() == 1:
        return here()
    first(lambda: here() and None)
    return here()


def stretched(run: RunConfig, data: Data, factor: int, multiple: int) -> tuple[RunPlan, Lengths]:
    """The run's plan with rows of `factor` times the length, and how long its samples are there."""
    batch = dataclasses.replace(run.batch, length=factor * run.batch.length)
    lengths = data.lengths.stretched(batch.length)
    if factor == 1:
        return data.plan, lengths
    plan = RunPlan(
        data.mixture, lengths, batch, epochs=run.epochs, steps=run.steps, multiple=multiple
    )
    return plan, lengths


def held_out_data(
    run: RunConfig, tokenizer: Tokenizer, facts: ImageFacts, rows: int, keep: bool = True
) -> Data | None:
    """The held-out records in their own order, one pass, as many rows per step as in training."""
    if run.evaluate is None:
        return None
    first = run.data[0]
    config = DataConfig(
        records=run.evaluate.records,
        template=run.evaluate.template or first.template,
        image=run.evaluate.image or first.image,
    )
    reader = make_reader([config], tokenizer, facts, run.batch.length)
    lengths = _measured(run, reader, keep=keep)
    batch = BatchConfig(
        rows=rows,
        length=run.batch.length,
        packing=run.batch.packing,
        max_images=run.batch.max_images,
    )
    mixture = Mixture([reader.parts[0].source], [1.0], shuffle=False)
    plan = RunPlan(mixture, lengths, batch, epochs=1, multiple=rows)
    return Data(reader, mixture, lengths, plan, workers=0)


def make_reader(
    sets: Sequence[DataConfig], tokenizer: Tokenizer, facts: ImageFacts, length: int
) -> Reader:
    """Reads the records of some sets as samples."""
    sources = _open_sets([s.records for s in sets])
    parts = [Part(source, s.template, s.image) for source, s in zip(sources, sets)]
    return Reader(parts, tokenizer, facts, length)


def _open_sets(folders: Sequence[str]) -> list[TFRecordSource]:
    """The sets in some folders; those that cannot be read are told together."""
    sources, faults = [], []
    for folder in folders:
        try:
            sources.append(TFRecordSource(folder))
        except (FileNotFoundError, ValueError) as error:
            faults.append(error)
    if faults:
        raise type(faults[0])(
            "`records` must name the folder of a set that data_prep or TFDS wrote:\n  "
            + "\n  ".join(map(str, faults))
        )
    return sources


def record_names(data: Data, step: int) -> list[str]:
    """The ids of a step's records, of all processes; of one that cannot be read, its place."""

    def name(record: int) -> str:
        try:
            return visible(data.reader.read(record).id)
        except (ValueError, OSError):
            return data.reader.where(record)

    return [name(record) for record in data.plan.records(step)]


def deliveries(data: Data, stage: Stage, start: int) -> Iterator[Delivery]:
    """The batches from step `start` on, on the devices."""
    with _pipeline(data, stage, stage.micro_batches).batches(start) as batches:
        for step, found in enumerate(batches, start):
            yield _deliver(found, data.plan, step, stage)


def all_told(deliveries: Iterator[Delivery], stage: Stage) -> Iterator[Delivery]:
    """The same; every process is told of the faults of all. From the main thread only."""
    for delivery in deliveries:
        pairs = of_all([*zip(delivery.faults, delivery.fault_kinds)], stage)
        faults, kinds = [fault for fault, _ in pairs], [kind for _, kind in pairs]
        yield dataclasses.replace(delivery, faults=faults, fault_kinds=kinds)


def of_all(faults: Sequence[Any], stage: Stage) -> list[Any]:
    """The faults that all processes met in their rows; those of rows that several took, once."""
    if jax.process_count() == 1:
        return list(faults)
    told = gather([share_of_rows(stage.mesh)[0], list(faults)])
    by_share = {tuple(parts): found for parts, found in told}
    return [fault for parts in sorted(by_share) for fault in by_share[parts]]


def evaluation_batches(data: Data, stage: Stage) -> Iterator[tuple[Batch, list[str]]]:
    """All held-out rows, on the devices, without the micro-batch axis; and their faults."""
    whole = dataclasses.replace(stage, micro_batches=1)
    with _pipeline(data, stage, 1).batches() as batches:
        for found in batches:
            batch = whole.to_devices(found.batch).map(lambda field: field[0])
            yield batch, _told(found)


def _pipeline(data: Data, stage: Stage, micro_batches: int) -> Pipeline:
    """Makes the rows that the devices of this process take."""
    parts, of = share_of_rows(stage.mesh)
    return Pipeline(
        data.plan,
        data.reader,
        workers=data.workers,
        parts=parts,
        of=of,
        micro_batches=micro_batches,
    )


def _deliver(found: StepData, plan: RunPlan, step: int, stage: Stage) -> Delivery:
    lengths = np.array([slot.tokens for row in plan[step] for slot in row], np.int64)
    return Delivery(
        batch=stage.to_devices(found.batch),
        samples=plan.samples(step),
        tokens=int(lengths.sum()),
        attended=int((lengths * (lengths + 1) // 2).sum()),
        filled=found.filled,
        faults=_told(found),
        fault_kinds=[fault.kind for fault in found.faults],
    )


def _told(found: StepData) -> list[str]:
    return [f"{fault.record or '?'} ({fault.where}): {fault.why}" for fault in found.faults]
