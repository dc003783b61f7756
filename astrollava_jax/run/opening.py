"""From a path to a model, whatever its layout: original files, or a run over its base."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.models.quantize import Store, store
from astrollava_jax.params import Params
from astrollava_jax.run import directory
from astrollava_jax.run.arrays import Chosen, Merged
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.sharding import place
from astrollava_jax.training.stored import Trained
from astrollava_jax.weights.adapted import Adapted, Kernels, Lora
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.llava import DECODER, TOWER
from astrollava_jax.weights.load import load as load_weights
from astrollava_jax.weights.recognise import recognise
from astrollava_jax.weights.resize import POSITIONS, Grid, interpolate, resize
from astrollava_jax.weights.source import Overlay, Source

Bases = Sequence[str]
"""Where the original of a run stands now, if it moved: one model, or a tower and a decoder."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that was found, whatever its layout."""

    source: Source
    """What every parameter is now."""
    base: Source
    """The original directories, without anything that a run changed."""
    init: InitConfig
    """How to open the base again."""
    changed: Mapping[str, Any]
    """Parameters whose values are not the base's; kernels with their adapters among them."""
    template: str
    """How the model is spoken to."""
    image_mode: Mode
    """How a picture is made square."""
    lora: Lora | None = None
    """The adapters, which are merged in `source` and `changed`."""
    beneath: "Opened | None" = None
    """The model without them."""

    def apart(self) -> "Opened":
        """The same model with its adapters as parameters of their own, as they train on."""
        if self.lora is None or self.beneath is None:
            return self
        changed = Merged(self.lora.arrays, self.beneath.changed)
        return dataclasses.replace(self.beneath, changed=changed)


def read_params(
    opened: Opened,
    addresses: list[str],
    shardings: Mapping[str, Any],
    dtypes: Mapping[str, Any],
    stores: Mapping[str, Store] | None = None,
) -> Params:
    """Parameters on the devices; what a run trained keeps the precision in which it was trained.

    Those in `stores` are stored one after the other, from the numbers of the files.
    """
    stores = stores or {}
    arrays = [address for address in addresses if address not in stores]
    original = [address for address in arrays if address not in opened.changed]
    params = load_weights(opened.base, original, shardings=shardings, dtypes=dtypes)
    for address in arrays:
        if address in opened.changed:
            array = opened.changed[address].astype(dtypes[address])
            params[address] = place(array, shardings[address])
    for address in addresses:
        if address in stores:
            if address in opened.changed:
                array = np.asarray(opened.changed[address])
                kernel = place(array, shardings[address])
            else:
                kernel = load_weights(opened.base, [address], shardings=shardings)[address]
            params[address] = store(stores[address], kernel)
    return params


def open_any(
    path: str,
    *,
    vision: str | None = None,
    llm: str | None = None,
    bases: Bases = (),
    step: int | None = None,
) -> Opened:
    """Opens a model in any layout; a run directory gives its newest checkpoint.

    Args:
        path: the model.
        vision: a tower for an original directory that lacks its own, a run's base too.
        llm: a decoder for a directory that holds a projector alone.
        bases: where a run's base stands now, if it moved; the model that an adapter belongs to.
        step: of a run directory; unset = the newest.

    Raises:
        FileNotFoundError: if there is nothing, or a run has no checkpoint yet.
        ValueError: if the layout is not known, or the base is not the one that was trained on.
    """
    found = directory.run_folder(path)
    if found is None:
        if len(bases) > 1:
            raise ValueError(f"--base: {path} is no run, so that it has one base at most")
        where = InitConfig(model=path, vision=vision, llm=llm, base=bases[0] if bases else None)
        return _open_original(where)
    if llm is not None:
        raise ValueError(f"--llm: {path} is a run, and has a decoder")
    folder, named = found
    return _open_run(folder, named if step is None else step, _moved(folder, bases, vision))


def reopen(run: RunConfig, bases: Bases) -> Opened | None:
    """What a run goes on from: its newest checkpoint over its base; None before the first one.

    The run that it began from is not needed any more. The base is looked for where `bases` or a
    changed `run.init` say that it stands now, else where it stood.
    """
    if not directory.finished_steps(run.out):
        return None
    moved = _moved(run.out, bases, None)
    if moved is None and run.init != directory.resolved(run.out).init:
        moved = None if directory.run_folder(run.init.model) else run.init
    return _open_run(run.out, None, moved).apart()


def open_init(init: InitConfig, bases: Bases = ()) -> Opened:
    """Opens what a run starts from; `bases` say where the original stands now, if it moved.

    Raises:
        ValueError: if `init.image_size` or `init.grid` is none for this tower.
    """
    return resized(_open_parts(init, bases), image_size=init.image_size, grid=init.grid)


def resized(opened: Opened, *, image_size: int | None = None, grid: Grid | None = None) -> Opened:
    """The model with another image size or grid, each as it was where it is None.

    Raises:
        ValueError: if either is none for this tower.
    """
    wanted = {"image_size": image_size, "grid": grid}
    source, changed = resize(opened.source, **wanted), opened.changed
    if POSITIONS in changed:
        towers = opened.source.config.vision, source.config.vision
        table = interpolate(np.asarray(changed[POSITIONS]), *towers)
        changed = Merged({POSITIONS: table}, changed)
    stated = {key: value for key, value in wanted.items() if value is not None}
    return dataclasses.replace(
        opened,
        source=source,
        base=resize(opened.base, **wanted),
        changed=changed,
        init=dataclasses.replace(opened.init, **stated),
        beneath=opened.beneath and resized(opened.beneath, **wanted),
    )


def _open_parts(init: InitConfig, bases: Bases) -> Opened:
    if directory.run_folder(init.model) is not None:
        assert init.model is not None
        return open_any(init.model, vision=init.vision, bases=bases)
    if bases:
        init = _same_kind(init, _standing(bases, init.vision), "init")
    if init.model is not None:
        return _open_original(init)
    assert init.vision is not None and init.llm is not None
    source = join(init.vision, init.llm)
    where = InitConfig(vision=files.absolute(init.vision), llm=files.absolute(init.llm))
    return Opened(source, source, where, {}, source.template, source.image_mode)


def _open_original(init: InitConfig) -> Opened:
    path = init.model
    assert path is not None
    source = open_model(path, vision=init.vision, llm=init.llm, base=init.base)
    init = InitConfig(
        model=files.absolute(path),
        vision=init.vision and files.absolute(init.vision),
        llm=init.llm and files.absolute(init.llm),
        base=init.base and files.absolute(init.base),
    )
    seen = source.template, source.image_mode
    if not isinstance(source, Adapted):
        return Opened(source, source, init, {}, *seen)
    overlay = source.base
    assert isinstance(overlay, Overlay)
    beneath = Opened(overlay, overlay.base, init, overlay.trained, *seen)
    return _adapted(beneath, source.lora, path)


def _adapted(beneath: Opened, lora: Lora, folder: str) -> Opened:
    """A model with adapters merged into its kernels."""
    precise = Overlay(beneath.base, beneath.changed, folder, dtype=np.float32)
    return dataclasses.replace(
        beneath,
        source=Adapted(beneath.source, lora, folder),
        changed=Merged(Kernels(precise, lora), beneath.changed),
        lora=lora,
        beneath=beneath,
    )


def _open_run(folder: str, step: int | None, moved: InitConfig | None) -> Opened:
    facts, finished = directory.read_facts(folder), directory.finished_steps(folder)
    if not finished or (step is not None and step not in finished):
        raise FileNotFoundError(
            f"{folder}: no checkpoint{' yet' if step is None else f' {step}'}; finished are: "
            + (", ".join(map(str, finished)) or "none")
        )
    init = directory.original_init(folder)
    if moved is not None:
        init = _same_kind(init, moved, folder)
    if directory.run_folder(init.model):
        raise ValueError(f"--base {init.model}: name the original directory, not a run")
    base = open_init(init)
    directory.check_base(folder, base.base)
    taken, total = finished[-1] if step is None else step, facts["data"]["steps"]
    trained = Trained(files.join(folder, directory.CHECKPOINTS), taken, facts["trained"])
    arrays = Merged(trained, directory.read_inherited(folder))
    adapters = {address for address in arrays if address.endswith((f"/{LORA_A}", f"/{LORA_B}"))}
    changed = Chosen(arrays, set(arrays) - adapters)
    source = Overlay(base.base, changed, folder)
    if taken < total:
        source.notes += (f"{folder} is taken as it was after step {taken} of {total}",)
    opened = dataclasses.replace(
        base,
        source=source,
        changed=changed,
        template=facts["template"],
        image_mode=facts["image"],
        lora=None,  # adapters that it began from are in what was trained or inherited
        beneath=None,
    )
    config = directory.resolved(folder).lora
    if config is None:
        return opened
    lora = Lora(config.rank, config.alpha, Chosen(arrays, adapters))
    return _adapted(opened, lora, folder)


def _moved(folder: str, bases: Bases, vision: str | None) -> InitConfig | None:
    """Where a run's original directories are said to stand now; None where nothing is said."""
    before = directory.original_init(folder)
    if bases:
        return _standing(bases, vision or before.vision)
    return None if vision is None else dataclasses.replace(before, vision=vision)


def _standing(bases: Bases, vision: str | None) -> InitConfig:
    """The directories that `--base` names: one model, or a tower and a decoder in any order."""
    if len(bases) == 1:
        return InitConfig(model=bases[0], vision=vision)
    found = {recognise(base): base for base in bases}
    if len(bases) > 2 or set(found) != {TOWER, DECODER}:
        layouts = ", ".join(f"{base} ({layout.name})" for layout, base in found.items())
        raise ValueError(f"--base: expected one model, or a tower and a decoder, found {layouts}")
    return InitConfig(vision=found[TOWER], llm=found[DECODER])


def _same_kind(before: InitConfig, now: InitConfig, what: str) -> InitConfig:
    """Where the original stands now.

    Raises:
        ValueError: if two towers stand for one model, or one model for two towers.
    """
    if (before.llm is None) != (now.llm is None):
        stood = before.model or f"{before.vision} and {before.llm}"
        raise ValueError(
            f"{what} begins from {stood}: say where that stands now, by --base MODEL for one model "
            "or by --base TOWER --base DECODER for two parts"
        )
    return dataclasses.replace(now, image_size=before.image_size, grid=before.grid)
