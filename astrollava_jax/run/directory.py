"""A run directory: what a run needs to go on, and a model that anything can open.

config.yaml      the resolved config
base.json        where the weights came from, with a fingerprint per frozen parameter
inherited/       frozen parameters that no original directory gives: made fresh, or by a run before
files/           config, tokenizer, processor and chat template of the base, byte for byte
checkpoints/     what trained
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from astrollava_jax import files
from astrollava_jax.config import load, parse
from astrollava_jax.data.image import Mode
from astrollava_jax.params import Params
from astrollava_jax.run.arrays import Arrays, Merged, write_arrays
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.training.checkpoint import Trained, steps
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.load import load as load_weights
from astrollava_jax.weights.source import Overlay, Source

BASE, CONFIG, CHECKPOINTS = "base.json", "config.yaml", "checkpoints"
INHERITED, SIDECARS = "inherited", "files"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that was found, whatever its layout."""

    source: Source
    """What every parameter is now."""
    base: Source
    """The original directories, without anything that a run changed."""
    init: InitConfig
    """How to open the base again."""
    changed: Mapping[str, np.ndarray]
    """Parameters whose values are not the base's."""
    template: str
    """How the model is spoken to."""
    image_mode: Mode
    """How a picture is made square."""


def read_params(
    opened: Opened, addresses: list[str], shardings: Mapping[str, Any], dtypes: Mapping[str, Any]
) -> Params:
    """Parameters on the devices; what a run trained keeps the precision in which it was trained."""
    original = [address for address in addresses if address not in opened.changed]
    params = load_weights(opened.base, original, shardings=shardings, dtypes=dtypes)
    for address in addresses:
        if address in opened.changed:
            array = opened.changed[address].astype(dtypes[address])
            params[address] = jax.device_put(array, shardings[address])
    return params


def run_folder(path: str) -> tuple[str, int | None] | None:
    """The run directory that `path` is, or a checkpoint of which it is; None for anything else."""
    path = files.absolute(path)
    if files.exists(files.join(path, BASE)):
        return path, None
    parent, name = path.rsplit("/", 1)
    run = parent.rsplit("/", 1)[0]
    if name.isdigit() and files.exists(files.join(run, BASE)):
        return run, int(name)
    return None


def open_any(
    path: str, *, vision: str | None = None, base: str | None = None, step: int | None = None
) -> Opened:
    """Opens a model in any layout; a run directory gives its newest checkpoint.

    Args:
        path: the model.
        vision: a tower for an original directory that lacks its own, a run's base too.
        base: where a run's base stands now, if it moved.
        step: of a run directory; unset = the newest.

    Raises:
        FileNotFoundError: if there is nothing, or a run has no checkpoint yet.
        ValueError: if the layout is not known, or the base is not the one that was trained on.
    """
    found = run_folder(path)
    if found is None:
        if base is not None:
            raise ValueError(f"--base {base}: only a run has a base, and {path} is none")
        return _open_original(path, vision)
    folder, named = found
    return _open_run(folder, named if step is None else step, _moved(folder, base, vision))


def reopen(run: RunConfig, base: str | None) -> Opened | None:
    """What a run goes on from: its newest checkpoint over its base; None before the first one.

    The run that it began from is not needed any more. The base is looked for where `base` or a
    changed `run.init` says that it stands now, else where it stood.
    """
    if not steps(files.join(run.out, CHECKPOINTS)):
        return None
    moved = _moved(run.out, base, None)
    if moved is None and run.init != resolved(run.out).init:
        moved = run.init if run.init.llm or not run_folder(run.init.model or "") else None
    return _open_run(run.out, None, moved)


def open_init(init: InitConfig, base: str | None = None) -> Opened:
    """Opens what a run starts from; `base` is where the original model stands now, if it moved."""
    if init.llm is None or init.vision is None:
        assert init.model is not None
        if base is not None and run_folder(init.model) is None:
            return _open_original(base, init.vision)
        return open_any(init.model, vision=init.vision, base=base)
    if base is not None:
        raise ValueError(
            f"--base {base}: this run begins from two towers, {init.vision} and {init.llm}: say in "
            "init where they stand now"
        )
    source = join(init.vision, init.llm)
    where = InitConfig(vision=files.absolute(init.vision), llm=files.absolute(init.llm))
    return Opened(source, source, where, {}, source.template, source.image_mode)


def begin(
    folder: str, run_yaml: str, opened: Opened, trainable: list[str], frozen: list[str],
    inherited: Mapping[str, np.ndarray], template: str, image_mode: Mode, data: dict[str, Any],
) -> None:  # fmt: skip
    """Writes everything of a run directory that stands before its first step.

    `base.json` is written last: a directory that has it is whole.
    """
    if inherited:
        write_arrays(files.join(folder, INHERITED), inherited)
    for name, content in opened.base.sidecars.items():
        files.write_bytes(files.join(folder, SIDECARS, name), content)
    files.write_text(files.join(folder, CONFIG), run_yaml)
    original = [address for address in frozen if address not in inherited]
    facts = {
        "format": FORMAT,
        "init": dataclasses.asdict(opened.init) | {"fresh": []},
        "template": template,
        "image": image_mode,
        "data": data,
        "trained": trainable,
        "inherited": sorted(inherited),
        "frozen": {
            address: {
                "folder": opened.base.folder_of(address),
                "fingerprint": opened.base.fingerprint(address),
            }
            for address in original
        },
    }
    files.write_json(files.join(folder, BASE), facts)


def check_free(folder: str) -> None:
    """Refuses a run directory that holds something else than an unfinished beginning.

    Raises:
        ValueError: if it does; names what is there.
    """
    ours = {CONFIG, INHERITED, SIDECARS, "plan", "log.jsonl", "tensorboard"}
    found = (
        [name for name in files.names(folder) if name not in ours]
        if files.is_folder(folder)
        else []
    )
    if found:
        raise ValueError(
            f"{folder}: expected a run directory or nothing, found {', '.join(found[:10])}: choose "
            "another `out`"
        )


def check_data(folder: str, data: dict[str, Any]) -> None:
    """Compares the record sets with those that the run began with.

    Raises:
        ValueError: if some differ: the order of what is left would be another.
    """
    before = _facts(folder)["data"]
    if before != data:
        sets = [i for i, pair in enumerate(zip(before["sets"], data["sets"])) if len({*pair}) > 1]
        raise ValueError(
            f"{folder}: its record sets have changed since it began (sets {sets}; steps "
            f"{before['steps']} then, {data['steps']} now): give it the old ones, or choose "
            "another `out`"
        )


def _check_base(folder: str, base: Source) -> None:
    """Compares a base's frozen parameters and its files of words with those of the beginning.

    Raises:
        ValueError: if some differ; names them.
    """
    differing = [
        f"{address}: expected {fact['fingerprint']} of {fact['folder']}, found another in "
        f"{base.folder_of(address)}"
        for address, fact in _facts(folder)["frozen"].items()
        if base.fingerprint(address) != fact["fingerprint"]
    ]
    kept = files.join(folder, SIDECARS)
    names = {*base.sidecars, *(files.names(kept) if files.is_folder(kept) else [])}
    for name in sorted(names):
        path = files.join(kept, name)
        before = files.read_bytes(path) if files.exists(path) else None
        if base.sidecars.get(name) != before:
            differing.append(f"{name}: expected what {path} holds, found something else")
    if differing:
        raise ValueError(
            f"{folder} was trained on another base; name the right one with --base DIR:\n  "
            + "\n  ".join(differing)
        )


def _open_original(path: str, vision: str | None) -> Opened:
    source = open_model(path, vision=vision)
    init = InitConfig(model=files.absolute(path), vision=vision and files.absolute(vision))
    return Opened(source, source, init, {}, source.template, source.image_mode)


def _moved(folder: str, base: str | None, vision: str | None) -> InitConfig | None:
    """Where a run's original directories stand now; None where they stood."""
    if base is None and vision is None:
        return None
    before = parse(InitConfig, _facts(folder)["init"], files.join(folder, BASE))
    if base is not None:
        return InitConfig(model=base, vision=vision or before.vision)
    return dataclasses.replace(before, vision=vision)


def _open_run(folder: str, step: int | None, moved: InitConfig | None) -> Opened:
    facts = _facts(folder)
    finished = steps(files.join(folder, CHECKPOINTS))
    if not finished or (step is not None and step not in finished):
        raise FileNotFoundError(
            f"{folder}: no checkpoint {'' if step is None else step}; finished are {finished}"
        )
    init = parse(InitConfig, facts["init"], files.join(folder, BASE))
    if moved is not None and (moved.llm is None) != (init.llm is None):
        raise ValueError(
            f"{folder} began from {init.model or f'{init.vision} and {init.llm}'}: to say where "
            "that stands now, change init in the run's file, or for one model give --base DIR"
        )
    if moved is not None:
        init = moved
    if run_folder(init.model or ""):
        raise ValueError(f"--base {init.model}: name the original directory, not a run")
    base = open_init(init)
    _check_base(folder, base.base)
    taken, total = finished[-1] if step is None else step, facts["data"]["steps"]
    trained = Trained(files.join(folder, CHECKPOINTS), taken)
    changed = Merged(trained, Arrays(files.join(folder, INHERITED)) if facts["inherited"] else {})
    source = Overlay(base.base, changed, folder)
    if taken < total:
        source.notes += (f"{folder} is taken as it was after step {taken} of {total}",)
    return dataclasses.replace(
        base,
        source=source,
        changed=changed,
        template=facts["template"],
        image_mode=facts["image"],
    )


def resolved(folder: str) -> RunConfig:
    """The config with which a run directory began."""
    return load(RunConfig, files.join(folder, CONFIG))


def _facts(folder: str) -> dict[str, Any]:
    facts = files.read_json(files.join(folder, BASE))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/{BASE}: expected format {FORMAT}, found {facts.get('format')}: it was "
            "written by another version"
        )
    return facts
