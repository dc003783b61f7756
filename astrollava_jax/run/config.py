"""RunConfig: everything that one run is, in the words of its YAML file."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from astrollava_jax import compiler, files
from astrollava_jax.config import (
    ConfigError,
    config,
    differences,
    override,
    parse,
    plain,
    read,
)
from astrollava_jax.data.image import Mode
from astrollava_jax.data.mixture import DataConfig, TemplateName
from astrollava_jax.data.pack import BatchConfig
from astrollava_jax.models.attention import Choice
from astrollava_jax.models.lora import LoraConfig
from astrollava_jax.models.quantize import FORMS, Form
from astrollava_jax.models.remat import Remat
from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training.anomaly import BadNumbers
from astrollava_jax.training.optimizer import Fraction, OptimizerConfig
from astrollava_jax.training.preemption import PreemptionConfig
from astrollava_jax.training.step import Loss
from astrollava_jax.training.watchdog import WatchdogConfig

Count = Annotated[int, Field(ge=1)]

Total = Annotated[int, Field(ge=1, le=10_000_000)]
"""All steps of a run are laid out in memory before the first is made."""


@config
class InitConfig:
    """Where the weights come from: one model, or two towers with a fresh projector."""

    model: str | None = None
    """A model in any layout, a run directory too."""
    vision: str | None = None
    """A vision tower's directory; it also completes a `model` that lacks its tower."""
    llm: str | None = None
    """A language model's directory; it also completes a `model` that is a projector alone."""
    base: str | None = None
    """The directory of the model that `model` is an adapter of, unless its config names it."""
    image_size: Count | None = None
    """Side of the square that the tower sees, in pixels: its positions are interpolated to it;
    unset = the model's own."""
    grid: tuple[tuple[int, int], ...] | None = None
    """Canvases (height, width) for pictures of any resolution, in multiples of the tower's size;
    unset = the model's own, if it has some. To a model without any they add `image_newline`."""
    fresh: tuple[str, ...] = ()
    """Patterns of parameters that are made anew, from the seed."""

    def __post_init__(self):
        if self.model is None and self.llm is None:
            raise ValueError("state either model, or llm with vision")
        if self.base is not None and self.model is None:
            raise ValueError("base needs model beside it: the adapter")
        if self.model is None and self.vision is None:
            raise ValueError("llm needs vision beside it: the tower that looks")


@config
class Precision:
    """In which numbers a run computes and keeps its weights."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    """float32 also means the highest matmul precision."""
    trainable: Literal["float32"] = "float32"
    """Master weights and moments."""
    frozen: Literal["bfloat16", "float32"] | Form = "bfloat16"
    """The working copy of what does not train; exports take it from the base's files instead.
    int8 and nf4 hold for the kernels of the decoder's layers, the others are then bfloat16."""

    @property
    def working(self) -> str:
        """The dtype of a working copy that is an array."""
        return "bfloat16" if self.frozen in FORMS else self.frozen


@config
class CheckpointConfig:
    """When checkpoints are written, besides after the last step, and how many stay."""

    every_seconds: Annotated[float, Field(ge=0)] | None = 300.0
    every_steps: Count | None = None
    keep: Annotated[int, Field(ge=2)] = 3
    """The newest good ones; at least 2, for one can be damaged."""
    keep_every_hours: Annotated[float, Field(gt=0)] | None = None
    """One more stays for good for every so many hours; null = none."""

    @property
    def keep_seconds(self) -> float | None:
        """The same in seconds."""
        return None if self.keep_every_hours is None else 3600 * self.keep_every_hours


@config
class EvaluateConfig:
    """The held-out loss, while training."""

    records: str
    """Folder of the record set."""
    every_steps: Count
    template: TemplateName | None = None
    """Unset = that of the first set in `data`."""
    image: Mode | None = None
    """Unset = that of the first set in `data`."""


@config
class LogConfig:
    """How often the step line is printed; `log.jsonl` has every step."""

    every_steps: Count = 10
    tensorboard: bool = True


@config
class BadRecords:
    """How much of the data may be unusable."""

    max_fraction: Fraction = 0.01
    """Of all samples of the run: when more cannot be read, it stops."""
    unlearned: Annotated[int, Field(ge=0)] = 0
    """Samples that may hold nothing to learn."""


@config
class RunConfig:
    """One stage of training. A stage differs from another only in its file."""

    out: str
    """The run directory."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    epochs: Total | None = None
    """Passes over the mixture; exactly one of `epochs` and `steps`."""
    steps: Total | None = None
    init: InitConfig
    data: tuple[DataConfig, ...]
    batch: BatchConfig
    loss: Loss = "tokens"
    lora: LoraConfig | None = None
    """Adapters beside linear maps; null = none."""
    optimizer: OptimizerConfig
    precision: Precision = Precision()
    remat: Remat | Literal["auto"] = "auto"
    """What of a layer the backward pass finds in memory; auto = the most that a device's memory
    has room for; full where that is not known, the tower trains or XLA computes attention."""
    attention: Choice = "auto"
    """What computes the decoder's attention; auto = what is made for the device."""
    mesh: MeshConfig = MeshConfig()
    compiler_options: compiler.Options = dataclasses.field(default_factory=dict)
    """What XLA is told besides, or instead of, what it is told for every such device; it knows the
    names of one kind of device only."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig | None = None
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that decode pictures; auto = one less than the cores, 16 at most."""
    log: LogConfig = LogConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    bad_records: BadRecords = BadRecords()
    bad_numbers: BadNumbers = BadNumbers()

    def __post_init__(self):
        patterns = sorted(set(self.out) & set("*?["))
        if patterns:
            # Orbax would look for its own files by such a pattern, find none, and save no array.
            raise ValueError(
                f"out is {self.out!r}: checkpoints cannot be written below a folder whose name "
                f"holds {' '.join(patterns)}; choose another"
            )
        compiler.check(self.compiler_options)
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"state exactly one of epochs ({self.epochs}) and steps ({self.steps})"
            )
        if not self.data:
            raise ValueError("data: at least one record set is needed")


FREE = ("out", "mesh", "batch.rows_per_device", "workers", "log", "checkpoint") + (
    "remat",
    "compiler_options",
    "preemption",
    "watchdog",
    "init.model",
    "init.vision",
    "init.llm",
    "init.base",
    "bad_records.max_fraction",
    "bad_numbers",
)
"""Keys that may change between two starts of the same run: no number that it computes follows.
`bad_numbers` says what is refused from here on, so that a run which it has ended can go on."""


def changed(before: RunConfig, now: RunConfig) -> list[str]:
    """What differs between two configs, in keys that make a run what it is."""
    return [
        line
        for line in differences(plain(before), plain(now))
        if not any(f"{line.split(':')[0]}.".startswith(f"{key}.") for key in FREE)
    ]


def read_run(path: str, overrides: Mapping[str, Any]) -> RunConfig:
    """The run of a file, with keys replaced; `steps` and `epochs` each replace either.

    Raises:
        ConfigError: if the file or what it says is wrong; lists all faults with their paths.
    """
    given = {"steps", "epochs"} & set(overrides)
    if len(given) == 2:
        raise ConfigError("--steps and --epochs: give one of them")
    tree = read(path)
    for key in {"steps": ("epochs",), "epochs": ("steps",)}.get("".join(given), ()):
        tree.pop(key, None)
    for key, value in overrides.items():
        override(tree, key, value)
    return parse(RunConfig, tree, path)


def with_absolute_paths(run: RunConfig) -> RunConfig:
    """The config with paths that read the same from any working directory."""

    def absolute(path: str | None) -> str | None:
        return None if path is None else files.absolute(path)

    init = dataclasses.replace(
        run.init,
        model=absolute(run.init.model),
        vision=absolute(run.init.vision),
        llm=absolute(run.init.llm),
        base=absolute(run.init.base),
    )
    data = tuple(dataclasses.replace(d, records=files.absolute(d.records)) for d in run.data)
    evaluate = run.evaluate and dataclasses.replace(
        run.evaluate, records=files.absolute(run.evaluate.records)
    )
    return dataclasses.replace(
        run, out=files.absolute(run.out), init=init, data=data, evaluate=evaluate
    )
