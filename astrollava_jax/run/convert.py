"""Writes a model in another layout, or joins a tower and a decoder into one."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from astrollava_jax import checksums, files
from astrollava_jax.models.llava import line_end
from astrollava_jax.params import Params, split
from astrollava_jax.run import directory
from astrollava_jax.run.arrays import Merged
from astrollava_jax.run.base import Bases
from astrollava_jax.run.config import InitConfig
from astrollava_jax.run.opening import COMMAND, Opened, open_any, open_init, resized
from astrollava_jax.weights.dtypes import READABLE
from astrollava_jax.weights.llava import ORIGINAL, PEFT
from astrollava_jax.weights.peft_export import write_adapter
from astrollava_jax.weights.resize import Grid
from astrollava_jax.weights.save import save
from astrollava_jax.weights.source import Source


def convert(
    source: files.Where | None,
    target: files.Where,
    layout: str,
    *,
    vision: files.Where | None = None,
    llm: files.Where | None = None,
    bases: Bases = (),
    image_size: int | None = None,
    grid: Grid | None = None,
    dtype: str | None = None,
    seed: int = 0,
    merge: bool = False,
) -> None:
    """Writes a model in another layout, and says what was read and written.

    Args:
        source: the model's directory; None where `vision` and `llm` stand in its place.
        target: the directory to write; it must not be there, or be empty.
        layout: `hf`, `llava` or `orbax`; or `peft`, the adapters alone.
        vision: the tower's directory: to be joined with `llm`, or for an original directory that
            only names its tower.
        llm: the decoder's directory.
        bases: where the original model of a run stands now, if it moved.
        image_size: side of the square that its tower shall see, in pixels; unset = as it does.
        grid: canvases for pictures of any resolution, which it then sees; unset = as it does.
        dtype: what all parameters become; each keeps its own unless given.
        seed: of what has no numbers: the projector of joined parts, the vector of a first grid.
        merge: add the model's adapters into its kernels.

    Raises:
        ValueError: if the target lies in what is read; if the directories do not fit together, or
            the layout cannot hold the model; if it has adapters and they are not to be merged, or
            has none and they are.
    """
    _check_apart(target, (source, vision, llm, *bases))
    opened = resized(_open(source, vision, llm, bases), image_size=image_size, grid=grid)
    if grid is not None:
        opened = dataclasses.replace(opened, image_mode="anyres")
    adapter = layout == PEFT.name
    _check_merge(source, opened, merge, adapter)
    model = opened.source
    print(f"read     {_origin(model)}: {_size(model)}")
    for note in model.notes:
        print(f"note     {note}")
    fresh = fresh_parts(model, seed)
    for part in dict.fromkeys(address.split("/")[0] for address in fresh):
        print(f"note     the {part} is fresh (seed {seed}): train it before you ask")
    kind = None if dtype is None else _dtype(dtype)
    if layout == ORIGINAL.name and model.words < model.config.llm.vocab_size:
        rows = f"{model.words} to {model.config.llm.vocab_size - 1}"
        print(f"note     the layout llava has no <image> and no pad: rows {rows} are left out")
    _write(target, layout, opened, fresh, kind)
    print(f"written  {target}: layout {layout}, {_written(target)}")


def _write(
    target: files.Where, layout: str, opened: Opened, fresh: Params, dtype: np.dtype | None
) -> None:
    seen: dict[str, Any] = {"template": opened.template, "image_mode": opened.image_mode}
    if layout == PEFT.name:
        assert opened.lora is not None and opened.beneath is not None
        whole = opened.beneath.changed
        with files.publish_folder(target) as folder:
            write_adapter(folder, opened.base, opened.lora, whole, dtype=dtype, **seen)
            checksums.write_list(folder)
        return
    # Not `opened.source`, which gives what was trained rounded to the base's dtype already.
    save(target, layout, opened.base, Merged(fresh, opened.changed), dtype=dtype, **seen)


def _check_apart(target: files.Where, sources: Sequence[files.Where | None]) -> None:
    """Refuses to write into a directory that is read; a checkpoint's is the whole run's."""
    written = files.resolved(target)
    for source in sources:
        run = None if source is None else directory.run_folder(str(source))
        read = source if run is None else run[0]
        if read is not None and f"{written}/".startswith(f"{files.resolved(read)}/"):
            raise ValueError(f"DST {target} lies in {read}, which is read: choose a place outside")


def fresh_parts(model: Source, seed: int) -> Params:
    """Random numbers for a projector and a line's end that have none."""
    config = model.config
    width = config.llm.embed_dim
    parts: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
        "projector": lambda rngs: config.projector.build(config.vision.embed_dim, width, rngs=rngs),
        "image_newline": lambda rngs: line_end(width, rngs),
    }
    return {
        f"{part}/{address}": array
        for part in parts
        if any(address.startswith(f"{part}/") for address in model.missing)
        for address, array in split(parts[part](nnx.Rngs(seed)))[1].items()
    }


def _open(
    source: files.Where | None,
    vision: files.Where | None,
    llm: files.Where | None,
    bases: Bases,
) -> Opened:
    tower = None if vision is None else str(vision)
    if source is not None:
        decoder = None if llm is None else str(llm)
        return open_any(str(source), vision=tower, llm=decoder, bases=bases)
    if source is None and llm is not None and tower is not None and not bases:
        return open_init(InitConfig(vision=tower, llm=str(llm)), said=COMMAND)
    raise ValueError(
        "convert: expected a model's directory, or --vision DIR and --llm DIR in its place; found "
        f"model {source}, --vision {vision}, --llm {llm}, --base {', '.join(bases) or None}"
    )


def _check_merge(source: files.Where | None, opened: Opened, merge: bool, adapter: bool) -> None:
    """Lets nobody take full weights for an adapter, or an adapter for full weights."""
    if adapter and (merge or opened.lora is None):
        why = "--merge leaves none" if merge else f"{source or 'a joined model'} has none"
        raise ValueError(f"--layout peft writes adapters alone: {why}")
    if opened.lora is not None and not (merge or adapter):
        raise ValueError(
            f"{source} has LoRA adapters (rank {opened.lora.rank}) over a base: `--merge` writes "
            "full weights, with the adapters added into the kernels; `--layout peft` writes the "
            "adapters alone"
        )
    if opened.lora is None and merge:
        raise ValueError(f"--merge: {source or 'a joined model'} has no adapters; leave it out")


def _origin(model: Source) -> str:
    folders = dict.fromkeys(model.folder_of(address) for address in model.shapes)
    return " and ".join(folders) + (f" (layout {model.layout})" if model.layout else "")


def _size(model: Source) -> str:
    infos = model.shapes.values()
    count = sum(math.prod(info.shape) for info in infos)
    nbytes = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos)
    dtypes = ", ".join(sorted({str(info.dtype) for info in infos}))
    return f"{count:,} parameters, {dtypes}, {nbytes / 1e9:.2f} GB"


def _written(target: files.Where) -> str:
    return ", ".join(files.names(target))


def _dtype(name: str) -> np.dtype:
    known = {str(dtype): dtype for dtype in READABLE}
    if name not in known:
        raise ValueError(f"--dtype: expected one of {', '.join(known)}, found {name!r}")
    return known[name]
