"""Trains the same twenty steps on every mesh, and tells by how much the losses differ. Linux.

    python -m astrollava_jax.bench.meshes --work DIR [--kinds stage1,full,lora]

A run is the smallest model of the simulated sky, on eight simulated devices. Each is compared, loss
by loss, with the same run on `fsdp 8`. With float32 no loss may differ by more than 1e-5 of itself;
with bfloat16 the difference is told: there the order of a sum is worth a digit. The table goes to
DIR/meshes.md, the figures to DIR/meshes.json.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from astrollava_jax import files
from astrollava_jax.bench import command, small_job
from astrollava_jax.bench.kill_matrix import curve, largest_difference
from astrollava_jax.bench.processes import Processes

DEVICES, STEPS = 8, 20

SPARE_WORDS = 1
"""An even number of words, which `tensor` divides."""

ALLOWED = {"float32": 1e-5, "bfloat16": None}
"""Type of the computation -> of a loss, how much it may differ; None where it is only told."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices are laid out, and who has them."""

    axes: Mapping[str, int | str]
    processes: int = 1

    def __str__(self):
        axes = dict(self.axes)
        frozen = axes.pop("frozen", None)
        words = [" x ".join(f"{name} {size}" for name, size in axes.items())]
        words += [f"frozen weights {frozen}"] if frozen else []
        words += [f"{self.processes} processes"] if self.processes > 1 else []
        return ", ".join(words)


FIRST = Mesh({"data": 1, "fsdp": 8})
OTHERS = (
    Mesh({"data": 8, "fsdp": 1}),
    Mesh({"data": 2, "fsdp": 4}),
    Mesh({"data": 2, "fsdp": 2, "tensor": 2}),
    Mesh({"data": 1, "fsdp": 4, "tensor": 2, "frozen": "replicated"}),
    Mesh({"data": 2, "fsdp": 4}, processes=2),
    Mesh({"data": 1, "fsdp": 8}, processes=4),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """How a run compares with that on the first mesh."""

    kind: str
    compute: str
    mesh: str
    largest_difference: float
    """Of a loss, relative."""
    last_losses: tuple[float, float]
    """Of the first mesh, and of this."""

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        allowed = ALLOWED[self.compute]
        if allowed is None or self.largest_difference <= allowed:
            return []
        difference = f"{self.largest_difference:.1e}, expected at most {allowed:.0e}"
        return [f"{self.kind}, {self.compute}, {self.mesh}: losses differ by {difference}"]


def losses(work: str, kind: str, compute: str, mesh: Mesh) -> list[float]:
    """Of every step of one run."""
    name = f"{kind}-{compute}-{mesh}".replace(", ", "-").replace(" ", "_")
    file = small_job.write_run(
        work, kind, files.join(work, kind), steps=STEPS, every_steps=STEPS, workers=0
    )
    run = Processes(
        file,
        files.join(work, name),
        mesh.processes,
        DEVICES // mesh.processes,
        overrides={
            "precision.compute": compute,
            "mesh": "{" + ", ".join(f"{key}: {value}" for key, value in mesh.axes.items()) + "}",
        },
        compiled=files.join(work, "compiled"),
    )
    with run:
        run.complete()
    return curve(run.out)


def compare(work: str, kind: str, compute: str, mesh: Mesh, expected: Sequence[float]) -> Found:
    """One run beside the losses of the first mesh."""
    found = losses(work, kind, compute, mesh)
    return Found(
        kind=kind,
        compute=compute,
        mesh=str(mesh),
        largest_difference=largest_difference(found, expected),
        last_losses=(expected[-1], found[-1]),
    )


def table(found: Sequence[Found]) -> str:
    """The figures as Markdown."""
    lines = [
        f"| trains | computed in | mesh, beside {FIRST} | largest difference of a loss |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.kind} | {one.compute} | {one.mesh} | {one.largest_difference:.1e} |"
        for one in found
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all of it; 0 where each is as it must be, else 1."""
    parser = command.parser("meshes", __doc__, "where the runs are")
    kinds = ",".join(small_job.KINDS)
    parser.add_argument(
        "--kinds", type=command.some_of(small_job.KINDS), default=kinds, help=f"some of {kinds}"
    )
    chosen = parser.parse_args(argv)
    runs = rf"({'|'.join(small_job.KINDS)})-({'|'.join(ALLOWED)})-.*"
    work, found = command.unused_folder(files.absolute(chosen.work), runs), []
    small_job.write(work, spare_words=SPARE_WORDS)
    for kind in chosen.kinds:
        for compute in ALLOWED:
            expected = losses(work, kind, compute, FIRST)
            for mesh in OTHERS:
                found.append(compare(work, kind, compute, mesh, expected))
                print(table(found).splitlines()[-1], flush=True)
    files.write_text(files.join(work, "meshes.md"), table(found))
    figures = files.join(work, "meshes.json")
    files.write_json(figures, [*map(dataclasses.asdict, found)])
    return command.ended([fault for one in found for fault in one.faults], figures)


if __name__ == "__main__":
    sys.exit(main())
