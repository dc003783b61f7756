"""From a path to a model, whatever its layout: original files, or a run over its base."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.models.lora import LORA_A, LORA_B
from astrollava_jax.models.quantize import Store, store
from astrollava_jax.params import Params
from astrollava_jax.run import directory
from astrollava_jax.run.arrays import Chosen, Merged
from astrollava_jax.run.base import Bases, moved, same_kind, standing
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.sharding import place
from astrollava_jax.training.stored import Trained
from astrollava_jax.weights.adapted import Adapted, Kernels, Lora
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.load import load as load_weights
from astrollava_jax.weights.resize import POSITIONS, Grid, interpolate, resize
from astrollava_jax.weights.source import Overlay, Source

COMMAND, RUN = "--{}", "init.{}"
"""How the user gives a directory or a size: as an option, or as a key of a run's file."""


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

    def rounded(self, addresses: Collection[str]) -> "Opened":
        """The same model, some of its merged kernels rounded once to the base's dtype.

        So a run that freezes them trains on what its exports hold, keeps no more than the base's
        room for them, and goes on from the numbers with which it began.
        """
        assert self.lora is not None and self.beneath is not None

        def dtype(address: str) -> np.dtype:
            return self.base.dtype(address) if address in addresses else np.dtype(np.float32)

        kernels = self.beneath.with_adapters(self.lora, dtype)
        return dataclasses.replace(self, changed=Merged(kernels, self.beneath.changed))

    def with_adapters(
        self, lora: Lora, dtype: Callable[[str], np.dtype] | None = None
    ) -> Mapping[str, Any]:
        """Kernels with adapters added to what they are in full precision; float32 unless said."""
        precise = Overlay(self.base, self.changed, "", dtype=np.float32)
        return Kernels(precise, lora, dtype)


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
    said: str = COMMAND,
) -> Opened:
    """Opens a model in any layout; a run directory gives its newest checkpoint.

    Args:
        path: the model.
        vision: a tower for an original directory that lacks its own, a run's base too.
        llm: a decoder for a directory that holds a projector alone.
        bases: where a run's base stands now, if it moved; the model that an adapter belongs to.
        step: of a run directory; unset = the newest.
        said: how the user gives `vision`, `llm` and `bases`, for what is told.

    Raises:
        FileNotFoundError: if there is nothing, or a run has no checkpoint yet.
        ValueError: if the layout is not known, or the base is not the one that was trained on.
    """
    found = directory.run_folder(path)
    if found is None:
        if len(bases) > 1:
            raise ValueError(
                f"--base: {path} is no run, so that it has one base at most, found "
                + ", ".join(bases)
            )
        where = InitConfig(model=path, vision=vision, llm=llm, base=bases[0] if bases else None)
        return _open_original(where, said)
    if llm is not None:
        raise ValueError(
            f"{path}: is a run, and has a decoder, so that {said.format('llm')} {llm} has no place"
        )
    folder, named = found
    return _open_run(folder, named if step is None else step, moved(folder, bases, vision))


def reopen(run: RunConfig, bases: Bases) -> Opened:
    """What a run goes on from: its newest checkpoint over its base.

    The run that it began from is not needed any more. The base is looked for where `bases` or a
    changed `run.init` say that it stands now, else where it stood.
    """
    now = moved(run.out, bases, None)
    if now is None and run.init != directory.resolved(run.out).init:
        now = None if directory.run_folder(run.init.model) else run.init
    return _open_run(run.out, None, now).apart()


def open_init(init: InitConfig, bases: Bases = (), *, said: str = RUN) -> Opened:
    """Opens what a run starts from; `bases` say where the original stands now, if it moved.

    Raises:
        ValueError: if `init.image_size` or `init.grid` is none for this tower.
    """
    opened = _open_parts(init, bases, said)
    return resized(opened, image_size=init.image_size, grid=init.grid, said=said)


def resized(
    opened: Opened,
    *,
    image_size: int | None = None,
    grid: Grid | None = None,
    said: str = COMMAND,
) -> Opened:
    """The model with another image size or grid, each as it was where it is None.

    Raises:
        ValueError: if either is none for this tower; says so in the user's words.
    """
    wanted = {"image_size": image_size, "grid": grid}
    stated = {key: value for key, value in wanted.items() if value is not None}
    try:
        source, changed = resize(opened.source, **wanted), opened.changed
    except ValueError as error:
        options = " and ".join(said.format(key) for key in stated)
        options = options.replace("_", "-") if said == COMMAND else options
        raise ValueError(f"{options} for {opened.source.folder_of(POSITIONS)}: {error}") from None
    if POSITIONS in changed:
        towers = opened.source.config.vision, source.config.vision
        table = interpolate(np.asarray(changed[POSITIONS]), *towers)
        changed = Merged({POSITIONS: table}, changed)
    return dataclasses.replace(
        opened,
        source=source,
        base=resize(opened.base, **wanted),
        changed=changed,
        init=dataclasses.replace(opened.init, **stated),
        beneath=opened.beneath and resized(opened.beneath, **wanted),
    )


def _open_parts(init: InitConfig, bases: Bases, said: str) -> Opened:
    if directory.run_folder(init.model) is not None:
        assert init.model is not None
        bases = bases or ((init.base,) if init.base else ())
        return open_any(init.model, vision=init.vision, llm=init.llm, bases=bases, said=said)
    if bases:
        init = same_kind(init, standing(bases, init.vision), "init")
    if init.model is not None:
        return _open_original(init, said)
    assert init.vision is not None and init.llm is not None
    source = join(init.vision, init.llm, said)
    where = InitConfig(vision=files.absolute(init.vision), llm=files.absolute(init.llm))
    return Opened(source, source, where, {}, source.template, source.image_mode)


def _open_original(init: InitConfig, said: str) -> Opened:
    path = init.model
    assert path is not None
    source = open_model(path, vision=init.vision, llm=init.llm, base=init.base, said=said)
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
    return dataclasses.replace(
        beneath,
        source=Adapted(beneath.source, lora, folder),
        changed=Merged(beneath.with_adapters(lora), beneath.changed),
        lora=lora,
        beneath=beneath,
    )


def _open_run(folder: str, step: int | None, now: InitConfig | None) -> Opened:
    directory.check_beginning(folder)
    facts, finished = directory.read_facts(folder), directory.finished_steps(folder)
    if not finished or (step is not None and step not in finished):
        raise FileNotFoundError(
            f"{folder}: no checkpoint{' yet' if step is None else f' {step}'}; finished are: "
            + (", ".join(map(str, finished)) or "none")
        )
    init = directory.original_init(folder)
    if now is not None:
        init = same_kind(init, now, folder)
    if directory.run_folder(init.model):
        raise ValueError(f"--base {init.model}: name the original directory, not a run")
    base = open_init(init, said=COMMAND)
    directory.check_base(folder, base.base)
    # A run that goes on has saved newer ones meanwhile, and may have removed those.
    newest = max(directory.finished_steps(folder), default=finished[-1])
    taken, total = newest if step is None else step, facts["data"]["steps"]
    trained = Trained(
        files.join(folder, directory.CHECKPOINTS), taken, facts["trained"], facts.get("run")
    )
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
