"""The numbers that a stage begins with: read from its source, or made from the seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.models.quantize import store
from astrollava_jax.params import Params, select, split
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.opening import Opened, read_params
from astrollava_jax.run.stage import Model, Stage, fresh_model
from astrollava_jax.sharding import gather, whole
from astrollava_jax.training.optimizer import FROZEN


def with_own_adapters(run: RunConfig, model: Model, opened: Opened) -> tuple[Opened, str | None]:
    """What a run begins from, and what to tell of its adapters.

    Adapters of the run's own kind train on; others are merged into the kernels.
    """
    lora = opened.lora
    if lora is None:
        return opened, None
    modules = sorted({module for module, last in map(_parts, model.shapes) if last == LORA_A})
    where = run.init.model
    if run.lora is not None and (lora.rank, lora.alpha, lora.modules) == (
        run.lora.rank, run.lora.alpha, modules
    ):  # fmt: skip
        return opened.apart(), f"the adapters of {where} are taken on"
    told = f"the adapters of {where} (rank {lora.rank}) are merged into its kernels"
    return opened.rounded(model.frozen), told


def fresh_addresses(run: RunConfig, model: Model, opened: Opened) -> list[str]:
    """The parameters that are made from the seed: what is said to be, and adapters nobody has.

    Raises:
        ValueError: if others have no numbers either.
    """
    try:
        fresh = select(run.init.fresh, model.shapes)
    except ValueError as error:
        raise ValueError(f"init.fresh: {error}") from None
    absent = sorted(set(opened.source.missing) - set(fresh))
    if absent:
        raise ValueError(
            "these parameters have no weights; name them in init.fresh to make them from the seed:"
            "\n  " + "\n  ".join(absent)
        )
    adapters = {
        address
        for address in model.shapes
        if _parts(address)[1] in (LORA_A, LORA_B) and address not in opened.changed
    }
    return sorted({*fresh, *adapters})


def initial(run: RunConfig, opened: Opened, stage: Stage, fresh: Sequence[str]) -> Params:
    """Every parameter on the devices: read from the source, or made from the seed."""
    model = stage.model
    made = make_fresh(run, model, fresh, stage.shardings) if fresh else {}
    return read(run, opened, stage, [a for a in model.shapes if a not in fresh]) | made


def read(run: RunConfig, opened: Opened, stage: Stage, addresses: list[str]) -> Params:
    """Parameters of a source on the devices, as the stage keeps them.

    Raises:
        ValueError: if numbers are not finite, beside which nothing is learned; names them.
    """
    dtypes = dtypes_of(run, stage.model)
    params = read_params(opened, addresses, stage.shardings, dtypes, stage.model.stores)
    gather(None)  # who could not read its part says so before all compute together
    known = opened.source.shapes
    faults = [
        f"{address}{place}: {count} of its numbers, in "
        + (", ".join(opened.source.files_of(address)) if address in known else "its adapters")
        for address, counts in _not_finite(params).items()
        for place, count in counts.items()
    ]
    if faults:
        raise ValueError(
            "these parameters hold numbers that are not finite, so that nothing could be learned; "
            "get their files anew:\n  " + "\n  ".join(faults)
        )
    return params


def _not_finite(params: Params) -> dict[str, dict[str, int]]:
    """How many numbers are not finite: by the address, and the layer where it has some."""
    found = {}
    for address, counts in _counted(params).items():
        counts = whole(counts)
        places = [f", layer {n}" for n in range(len(counts))] if counts.ndim else [""]
        bad = {place: int(n) for place, n in zip(places, counts.reshape(-1)) if n}
        found |= {address: bad} if bad else {}
    return found


@jax.jit
def _counted(params: Params) -> dict[str, Any]:
    def count(leaf: jax.Array, stacked: bool) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.int32(0)
        return jnp.sum(~jnp.isfinite(leaf), axis=tuple(range(stacked, leaf.ndim)), dtype=jnp.int32)

    return {
        address: sum(count(leaf, "/layers/" in address) for leaf in jax.tree.leaves(array))
        for address, array in params.items()
    }


def dtypes_of(run: RunConfig, model: Model) -> dict[str, str]:
    """What every parameter is kept as, unless it is stored in another form."""
    precision = run.precision
    return {
        address: precision.working if fate == FROZEN else precision.trainable
        for address, fate in model.fates.items()
    }


def make_fresh(
    run: RunConfig, model: Model, fresh: Sequence[str], shardings: Mapping[str, Any]
) -> Params:
    """Some parameters, made from the run's seed."""
    dtypes = dtypes_of(run, model)

    def make(seed: Any) -> Params:
        made = split(fresh_model(run, model.config, jax.random.key(seed)))[1]
        return {address: made[address].astype(dtypes[address]) for address in fresh}

    return jax.jit(make, out_shardings={a: shardings[a] for a in fresh})(run.seed)


def make_random(run: RunConfig, stage: Stage) -> Params:
    """Every parameter made from the run's seed, as the stage keeps them: a model of nobody's."""
    model = stage.model
    kept = [address for address in model.shapes if address not in model.stores]
    made = make_fresh(run, model, kept, stage.shardings)
    for address, how in model.stores.items():  # one after the other: each is large before
        made |= {address: store(how, make_fresh(run, model, [address], stage.shardings)[address])}
    return made


def _parts(address: str) -> tuple[str, str]:
    module, _, last = address.rpartition("/")
    return module, last
