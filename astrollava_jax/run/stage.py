"""A stage, compiled or ready to be: model, fates, shardings, steps. No device is touched."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astrollava_jax.batch import Batch, ImageFacts
from astrollava_jax.data.rows import RowShape
from astrollava_jax.models.llava import LlavaConfig, logical_axes
from astrollava_jax.params import Params, split
from astrollava_jax.run.config import RunConfig
from astrollava_jax.sharding import Axes, placements, replicated, rows_multiple, spec
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
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[[Params, Params, Batch], tuple[Any, Any]]
    compute: str

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The context in which the functions are traced and called."""
        precision = "highest" if self.compute == "float32" else "default"
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(precision):
            yield

    def init_optimizer(self, trainable: Params) -> AdamState:
        """Zero moments, laid out as the parameters are."""
        make = jax.jit(self.optimizer.init, out_shardings=self.state_shardings.optimizer)
        return make(trainable)

    def to_devices(self, batch: Batch) -> Batch:
        """Rows of this process as arrays [A, rows, ...] over all devices."""

        def place(field: Any) -> Any:
            micro = field.reshape(self.micro_batches, -1, *field.shape[1:])
            return jax.make_array_from_process_local_data(self.batch_sharding, micro)

        return batch.map(place)


def describe(run: RunConfig, config: LlavaConfig) -> Model:
    """The model's parameters and their fates.

    Raises:
        ValueError: if the fates do not cover the parameters exactly.
    """
    abstract = config.abstract()
    graphdef, shapes = split(abstract)
    return Model(config, graphdef, shapes, logical_axes(abstract), run.optimizer.fates(shapes))


def rows_unit(run: RunConfig, mesh: Mesh) -> int:
    """The number of rows of a step is a multiple of this."""
    return rows_multiple(mesh) * (run.batch.rows_per_device or 1)


def build(
    run: RunConfig, model: Model, mesh: Mesh, *, rows: int, samples: int, updates: int
) -> Stage:
    """The stage on a mesh.

    Args:
        run: the run.
        model: what it trains.
        mesh: real devices, or described ones.
        rows: of a step, over all devices.
        samples: the most that a step holds.
        updates: the schedule's length.

    Raises:
        ValueError: if the mesh does not divide the model.
    """
    shardings = placements(model.axes, model.shapes, mesh)
    rows_per_device = run.batch.rows_per_device or rows // rows_multiple(mesh)
    optimizer = AdamW(run.optimizer, model.fates, updates)
    compute = jnp.dtype(run.precision.compute)
    trained = {address: shardings[address] for address in model.trainable}
    everywhere = replicated(mesh)
    state = TrainState(trained, AdamState(everywhere, trained, trained))  # pyright: ignore
    step = make_train_step(
        model.graphdef,
        optimizer,
        run.loss,
        samples=samples,
        rows_per_device=rows_per_device,
        dtype=compute,
        remat=run.remat,
    )
    evaluate = make_evaluate_step(model.graphdef, rows_per_device=rows_per_device, dtype=compute)
    return Stage(
        model=model,
        mesh=mesh,
        optimizer=optimizer,
        shardings=shardings,
        state_shardings=state,
        batch_sharding=NamedSharding(mesh, PartitionSpec(None, *spec(("batch",), mesh))),
        micro_batches=rows // (rows_per_device * rows_multiple(mesh)),
        step=jax.jit(step, donate_argnums=0, out_shardings=(state, everywhere)),
        evaluate=jax.jit(evaluate, out_shardings=everywhere),
        compute=run.precision.compute,
    )


def abstract_params(stage: Stage, addresses: list[str], dtype: str) -> Params:
    """Shapes of some parameters in a dtype, with their layout."""
    return {
        address: jax.ShapeDtypeStruct(
            stage.model.shapes[address].shape, dtype, sharding=stage.shardings[address]
        )
        for address in addresses
    }


def abstract_state(stage: Stage, run: RunConfig) -> TrainState:
    """What a step changes, as shapes with their layout."""
    trainable = abstract_params(stage, stage.model.trainable, run.precision.trainable)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(stage.mesh))
    return TrainState(trainable, AdamState(count, trainable, trainable))


def abstract_arguments(
    stage: Stage, run: RunConfig, shape: RowShape, facts: ImageFacts, rows: int
) -> tuple[TrainState, Params, Batch]:
    """What the step takes, as shapes with their layout: enough to compile it."""

    def array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    micro = (stage.micro_batches, rows // stage.micro_batches)
    size, T, K, I = facts.size, *shape  # noqa: E741
    inner = Batch((T,), (T,), (K,), (K,), (T,), (T,), (I, size, size, 3), (T,))
    batch = inner.map(lambda dims: array((*micro, *dims), jnp.int32, stage.batch_sharding))
    pixels = batch.images
    batch = batch._replace(images=array(pixels.shape, jnp.uint8, stage.batch_sharding))
    frozen = abstract_params(stage, stage.model.frozen, run.precision.frozen)
    return abstract_state(stage, run), frozen, batch
