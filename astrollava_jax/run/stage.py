"""A stage, compiled or ready to be: model, fates, shardings, steps. No device is touched."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astrollava_jax import compiler
from astrollava_jax.batch import Batch, ImageFacts
from astrollava_jax.data.rows import RowShape
from astrollava_jax.meshing import Frozen
from astrollava_jax.models import quantize
from astrollava_jax.models.attention import Kernel, choose
from astrollava_jax.models.llava import Llava, LlavaConfig, logical_axes
from astrollava_jax.models.lora import LORA_A, attach
from astrollava_jax.models.remat import Remat
from astrollava_jax.params import Params, split
from astrollava_jax.run.config import RunConfig
from astrollava_jax.sharding import Axes, placements, replicated, rows_multiple, spec, without
from astrollava_jax.training.anomaly import History, SpikeConfig, no_history
from astrollava_jax.training.optimizer import FROZEN, AdamState, AdamW
from astrollava_jax.training.state import TrainState
from astrollava_jax.training.step import make_evaluate_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Model:
    """What a run's model is before it has numbers."""

    config: LlavaConfig
    graphdef: nnx.GraphDef
    shapes: Params
    axes: dict[str, Axes]
    fates: dict[str, str]
    stores: dict[str, quantize.Store]
    """How the frozen kernels are stored that are stored in another form."""

    @property
    def trainable(self) -> list[str]:
        """The addresses that train."""
        return [address for address, fate in self.fates.items() if fate != FROZEN]

    @property
    def frozen(self) -> list[str]:
        """The addresses that do not."""
        return [address for address, fate in self.fates.items() if fate == FROZEN]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The compiled functions of a run on a mesh, with the layout of everything they take."""

    model: Model
    mesh: Mesh
    optimizer: AdamW
    shardings: dict[str, NamedSharding]
    state_shardings: TrainState
    batch_sharding: NamedSharding
    micro_batches: int
    spike: SpikeConfig | None
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[[Params, Params, Batch], tuple[Any, Any]]
    compute: str
    remat: Remat
    notes: tuple[str, ...]
    """What to tell of how it is computed."""
    start: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds to the end of the first step, by what was waited for; empty until then."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The context in which the functions are traced and called."""
        precision = "highest" if self.compute == "float32" else "default"
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(precision):
            yield

    def begin(self, trainable: Params) -> TrainState:
        """The state before the first step: zero moments, laid out as the parameters are."""
        make = jax.jit(self.optimizer.init, out_shardings=self.state_shardings.optimizer)
        return TrainState(trainable, make(trainable), self.no_history())

    def no_history(self) -> History | None:
        """That of a run that begins."""
        make = jax.jit(no_history, static_argnums=0, out_shardings=self.state_shardings.history)
        return make(self.spike)

    def to_devices(self, batch: Batch) -> Batch:
        """Rows of this process as arrays [A, rows, ...] over all devices."""

        def place(field: Any) -> Any:
            micro = field.reshape(self.micro_batches, -1, *field.shape[1:])
            return jax.make_array_from_process_local_data(self.batch_sharding, micro)

        return batch.map(place)


def describe(run: RunConfig, config: LlavaConfig) -> Model:
    """The model's parameters and their fates.

    Raises:
        ValueError: if the fates do not cover the parameters exactly, or a setting has no use.
    """
    abstract = nnx.eval_shape(lambda: fresh_model(run, config, jax.random.key(0)))
    graphdef, shapes = split(abstract)
    fates = run.optimizer.fates(shapes)
    _check_adapters(fates)
    stores = _stores(run, abstract, fates)
    return Model(config, graphdef, shapes, logical_axes(abstract), fates, stores)


def fresh_model(run: RunConfig, config: LlavaConfig, key: jax.Array) -> Llava:
    """The model of a run with its adapters, all numbers made from a key."""
    model = config.build(nnx.Rngs(key))
    return model if run.lora is None else attach(model, run.lora, key)


def _check_adapters(fates: dict[str, str]) -> None:
    """Refuses adapters beside kernels that train, of which no merge could be taken apart."""
    modules = [a.removesuffix(f"/{LORA_A}") for a in fates if a.endswith(f"/{LORA_A}")]
    both = [module for module in modules if fates[f"{module}/kernel"] != FROZEN]
    if both:
        raise ValueError(
            "an adapter stands beside a frozen kernel; freeze these in optimizer.frozen, or leave "
            "them out of lora.targets:\n  " + "\n  ".join(f"{module}/kernel" for module in both)
        )


def _stores(run: RunConfig, abstract: Llava, fates: dict[str, str]) -> dict[str, quantize.Store]:
    form = run.precision.frozen
    if form not in quantize.FORMS:
        return {}
    found = {a: how for a, how in quantize.stores(abstract, form).items() if fates[a] == FROZEN}
    if not found:
        raise ValueError(
            f"precision.frozen is {form}, but every kernel of the decoder's layers trains: set it "
            "to bfloat16"
        )
    return found


def rows_unit(run: RunConfig, mesh: Mesh) -> int:
    """The number of rows of a step is a multiple of this."""
    return rows_multiple(mesh) * (run.batch.rows_per_device or 1)


def rows_at_once(run: RunConfig, mesh: Mesh, rows: int) -> int:
    """Of a step's rows, those that one device computes at a time."""
    return run.batch.rows_per_device or rows // rows_multiple(mesh)


def build(
    run: RunConfig, model: Model, mesh: Mesh, *, rows: int, samples: int, updates: int,
    frozen: Frozen = "sharded", told: compiler.Options | None = None,
) -> Stage:  # fmt: skip
    """The stage on a mesh.

    Args:
        run: the run, whose remat is decided (`run.keeping`).
        model: what it trains.
        mesh: real devices, or described ones.
        rows: of a step, over all devices.
        samples: the most that a step holds.
        updates: the schedule's length.
        frozen: whether what does not train is whole on every device of fsdp.
        told: all that the compiler is told; None = what it is told for such devices, and the run's
            own options.

    Raises:
        ValueError: if the mesh does not divide the model, or `attention` cannot be had there.
    """
    shardings = shardings_of(model, mesh, frozen)
    remat, rows_per_device = _decided(run), rows_at_once(run, mesh, rows)
    optimizer = AdamW(run.optimizer, model.fates, updates)
    compute = jnp.dtype(run.precision.compute)
    spike = run.bad_numbers.spike
    state = _state_shardings(model, shardings, spike, everywhere := replicated(mesh))
    kernel, note = attention_kernel(run, model, mesh, rows)
    options = compiler.options(mesh.devices.flat[0], run.compiler_options)
    jit = functools.partial(jax.jit, compiler_options=options if told is None else told)
    step = make_train_step(
        model.graphdef,
        optimizer,
        run.loss,
        samples=samples,
        rows_per_device=rows_per_device,
        dtype=compute,
        remat=remat,
        kernel=kernel,
        dropout_seed=run.seed if run.lora is not None and run.lora.dropout else None,
        spike=spike,
        narrow=narrow_gradients(run, mesh.devices.flat[0]),
    )
    evaluate = make_evaluate_step(
        model.graphdef, rows_per_device=rows_per_device, dtype=compute, kernel=kernel
    )
    return Stage(
        model=model,
        mesh=mesh,
        optimizer=optimizer,
        shardings=shardings,
        state_shardings=state,
        batch_sharding=NamedSharding(mesh, PartitionSpec(None, *spec(("batch",), mesh))),
        micro_batches=rows // (rows_per_device * rows_multiple(mesh)),
        spike=spike,
        step=jit(step, donate_argnums=0, out_shardings=(state, everywhere)),
        evaluate=jit(evaluate, out_shardings=everywhere),
        compute=run.precision.compute,
        remat=remat,
        notes=() if note is None else (note,),
    )


def _decided(run: RunConfig) -> Remat:
    if run.remat == "auto":
        raise ValueError("remat: auto is decided before a stage is built, by run.keeping.decided")
    return run.remat


def narrow_gradients(run: RunConfig, device: Any) -> Any | None:
    """The dtype of compute on GPUs, whose products are rounded to it; a TPU's may be float32."""
    narrower = run.precision.compute != run.precision.trainable
    return jnp.dtype(run.precision.compute) if narrower and device.platform == "gpu" else None


def attention_kernel(
    run: RunConfig, model: Model, mesh: Mesh, rows: int
) -> tuple[Kernel, str | None]:
    """What computes the decoder's attention, and what to tell of it."""
    llm, compute = model.config.llm, jnp.dtype(run.precision.compute)
    queries = jax.ShapeDtypeStruct((rows, run.batch.length, llm.num_heads, llm.head_dim), compute)
    device = mesh.devices.flat[0]
    return choose(run.attention, device, queries, llm.num_kv_heads, llm.scores_softcap)


def _state_shardings(
    model: Model, shardings: dict[str, NamedSharding], spike: SpikeConfig | None,
    everywhere: NamedSharding,
) -> TrainState:  # fmt: skip
    """Where what a step changes lies: moments as their parameters, all else `everywhere`."""
    trained = {address: shardings[address] for address in model.trainable}
    history = None if spike is None else History(everywhere, everywhere, everywhere)  # pyright: ignore
    moments = AdamState(everywhere, trained, trained)  # pyright: ignore
    return TrainState(trained, moments, history)


def shardings_of(model: Model, mesh: Mesh, frozen: Frozen) -> dict[str, NamedSharding]:
    """Where each parameter lies; a frozen one whole on all devices of fsdp, if it is replicated."""
    found = placements(model.axes, model.shapes, mesh)
    if frozen == "replicated":
        found |= {address: without(found[address], "fsdp") for address in model.frozen}
    return found


def abstract_params(stage: Stage, addresses: list[str], dtype: str) -> Params:
    """Shapes of some parameters in a dtype, or in their stored form, with their layout."""
    model = stage.model

    def like(address: str) -> Any:
        shape, sharding = model.shapes[address].shape, stage.shardings[address]
        array = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        how = model.stores.get(address)
        return array if how is None else quantize.abstract(how, array)

    return {address: like(address) for address in addresses}


def abstract_state(stage: Stage, run: RunConfig) -> TrainState:
    """What a step changes, as shapes with their layout."""
    trainable = abstract_params(stage, stage.model.trainable, run.precision.trainable)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(stage.mesh))
    history = jax.eval_shape(functools.partial(no_history, stage.spike))
    history = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(stage.mesh)), history
    )
    return TrainState(trainable, AdamState(count, trainable, trainable), history)


def abstract_arguments(
    stage: Stage, run: RunConfig, shape: RowShape, facts: ImageFacts, rows: int
) -> tuple[TrainState, Params, Batch]:
    """What the step takes, as shapes with their layout: enough to compile it."""

    def array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    micro = (stage.micro_batches, rows // stage.micro_batches)
    size, T, K, I, S = facts.size, *shape  # noqa: E741
    inner = Batch((T,), (T,), (K,), (K,), (T,), (T,), (I, size, size, 3), (T,), (S,))
    batch = inner.map(lambda dims: array((*micro, *dims), jnp.int32, stage.batch_sharding))
    pixels = batch.images
    batch = batch._replace(images=array(pixels.shape, jnp.uint8, stage.batch_sharding))
    frozen = abstract_params(stage, stage.model.frozen, run.precision.working)
    return abstract_state(stage, run), frozen, batch
