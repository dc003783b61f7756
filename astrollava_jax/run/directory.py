"""A run directory: what a run needs to go on, written before its first step.

config.yaml      the resolved config
base.json        where the weights came from, with a fingerprint per frozen parameter
inherited/       frozen parameters that no original directory gives: made fresh, or by a run before
files/           config, tokenizer, processor and chat template of the base, byte for byte
checksums.json   size and CRC32C of all of these
checkpoints/     what trained

What stands there only while a run goes on, or because it did, is in `held`.
"""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astrollava_jax import checksums, files
from astrollava_jax.config import load, parse
from astrollava_jax.data.image import Mode
from astrollava_jax.run.arrays import Arrays, write_arrays
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.training.steps import aside, steps, was_cut_short
from astrollava_jax.weights.source import Source

BASE, CONFIG, CHECKPOINTS = "base.json", "config.yaml", "checkpoints"
INHERITED, SIDECARS = "inherited", "files"
LOCK, LAST_GOOD = ".lock", "last_good.json"
FORMAT = 1


def run_folder(path: str | None) -> tuple[str, int | None] | None:
    """The run directory that `path` is, or a checkpoint of which it is; None for anything else."""
    for place in (files.absolute(path), files.resolved(path)) if path else ():
        if files.exists(files.join(place, BASE)):
            return place, None
        parent, name = place.rsplit("/", 1)
        run = parent.rsplit("/", 1)[0]
        if name.isdigit() and files.exists(files.join(run, BASE)):
            return run, int(name)
    return None


def begin(
    folder: str, run_yaml: str, base: Source, init: InitConfig, trainable: list[str],
    frozen: list[str], inherited: Mapping[str, Any], template: str, image_mode: Mode,
    data: dict[str, Any],
) -> None:  # fmt: skip
    """Writes everything of a run directory that stands before its first step.

    `base.json` is written last: a directory that has it is whole. What a run that came to no good
    checkpoint has left is replaced.
    """
    for name in (LAST_GOOD, SIDECARS):
        files.remove(files.join(folder, name))
    if inherited:
        write_arrays(files.join(folder, INHERITED), inherited)
    for name, content in base.sidecars.items():
        files.write_bytes(files.join(folder, SIDECARS, name), content)
    files.write_text(files.join(folder, CONFIG), run_yaml)
    original = [address for address in frozen if address not in inherited]
    facts = {
        "format": FORMAT,
        "run": secrets.token_hex(8),
        "folder": folder,
        "init": dataclasses.asdict(init) | {"fresh": []},
        "template": template,
        "image": image_mode,
        "data": data,
        "trained": trainable,
        "inherited": sorted(inherited),
        "frozen": {
            address: {
                "folder": base.folder_of(address),
                "files": list(base.files_of(address)),
                "fingerprint": base.fingerprint(address),
            }
            for address in original
        },
    }
    content = files.as_json(facts)
    last = (BASE, checksums.CHECKSUMS)
    names = [name for name in files.walk(folder) if is_beginning(name) and name not in last]
    checksums.write_list(folder, names, **{BASE: content})
    files.write_bytes(files.join(folder, BASE), content)


def is_beginning(name: str) -> bool:
    """Whether a file of a run directory, by its name there, stands before the first step."""
    return name.split("/")[0] in (CONFIG, INHERITED, SIDECARS, BASE, checksums.CHECKSUMS)


def beginning_faults(folder: str, only: Sequence[str] = ()) -> list[str]:
    """What of a run's beginning is not as it was written; `only` these files, where some are named.

    Every file is named, with what was expected and found.
    """
    try:
        stated = checksums.read_list(folder)
    except ValueError as error:
        return [str(error)]
    return checksums.faults(folder, {n: s for n, s in stated.items() if not only or n in only})


def check_beginning(folder: str, only: Sequence[str] = ()) -> None:
    """Refuses a run directory of which a file of the beginning is not as it was written.

    Raises:
        ValueError: names every such file.
    """
    found = beginning_faults(folder, only)
    if found:
        raise ValueError(
            f"{folder}: the beginning of this run is damaged, or was edited; put the files back, "
            "or choose another `out`:\n  " + "\n  ".join(found)
        )


def read_facts(folder: str) -> dict[str, Any]:
    """What `begin` wrote into `base.json`.

    Raises:
        ValueError: if another version wrote it.
    """
    facts = files.read_json_object(files.join(folder, BASE))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/{BASE}: expected format {FORMAT}, found {facts.get('format')}: it was "
            "written by another version"
        )
    return facts


def run_name(folder: str) -> str | None:
    """What tells a run from all others; None if an older version began it."""
    return read_facts(folder).get("run")


def resolved(folder: str) -> RunConfig:
    """The config with which a run directory began."""
    return load(RunConfig, files.join(folder, CONFIG))


def finished_steps(folder: str) -> list[int]:
    """The steps of which a run directory has a checkpoint, in order."""
    return steps(files.join(folder, CHECKPOINTS))


def is_aside(folder: str, step: int) -> bool:
    """Whether a step that was good once was set aside: damaged, diverged or untrusted."""
    checkpoints = files.join(folder, CHECKPOINTS)
    names = aside(checkpoints) if files.is_folder(checkpoints) else []
    return any(name.startswith(f"{step}.") for name in names if not was_cut_short(name))


def read_inherited(folder: str) -> Mapping[str, np.ndarray]:
    """The frozen parameters that no original directory gives."""
    return Arrays(files.join(folder, INHERITED)) if read_facts(folder)["inherited"] else {}


def original_init(folder: str) -> InitConfig:
    """The original directories that a run began from.

    One that is gone is looked for where it stands seen from the run's directory: the two are often
    moved together.
    """
    facts = read_facts(folder)
    init = parse(InitConfig, facts["init"], files.join(folder, BASE))

    def standing(path: str | None) -> str | None:
        if path is None or files.exists(path) or "folder" not in facts:
            return path
        moved = files.relocated(path, facts["folder"], folder)
        return moved if files.exists(moved) else path

    return dataclasses.replace(
        init,
        model=standing(init.model),
        vision=standing(init.vision),
        llm=standing(init.llm),
        base=standing(init.base),
    )


def is_alive(folder: str) -> bool:
    """Whether a process trains in a run directory just now."""
    return files.is_locked(files.join(folder, LOCK))


def check_free(folder: str) -> None:
    """Refuses a run directory that holds something else than an unfinished beginning.

    Raises:
        ValueError: if it does; names what is there.
    """
    ours = {CONFIG, INHERITED, SIDECARS, LOCK, checksums.CHECKSUMS}
    ours |= {"plan", "log.jsonl", "tensorboard", "profile"}
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
    before = read_facts(folder)["data"]
    if before != data:
        sets = [i for i, pair in enumerate(zip(before["sets"], data["sets"])) if len({*pair}) > 1]
        raise ValueError(
            f"{folder}: its record sets have changed since it began (sets {sets}; steps "
            f"{before['steps']} then, {data['steps']} now): give it the old ones, or choose "
            "another `out`"
        )


def check_base(folder: str, base: Source) -> None:
    """Compares a base's frozen parameters and its files of words with those of the beginning.

    Raises:
        ValueError: if some differ; names them.
    """
    differing = []
    for address, fact in read_facts(folder)["frozen"].items():
        expected = f"expected fingerprint {fact['fingerprint']}, as in {', '.join(fact['files'])}"
        if address not in base.shapes:
            differing.append(f"{address}: {expected}; found no file that holds it")
        elif (found := base.fingerprint(address)) != fact["fingerprint"]:
            differing.append(
                f"{', '.join(base.files_of(address))}: {address}: {expected}; found {found}"
            )
    kept = files.join(folder, SIDECARS)
    before = files.names(kept) if files.is_folder(kept) else []
    for name in sorted({*base.sidecars, *before}):
        content = files.read_bytes(files.join(kept, name)) if name in before else None
        if base.sidecars.get(name) != content:
            differing.append(f"{name}: expected what {kept}/{name} holds, found something else")
    if differing:
        raise ValueError(
            f"{folder} was trained on another base; name the right one with --base DIR:\n  "
            + "\n  ".join(differing)
        )
