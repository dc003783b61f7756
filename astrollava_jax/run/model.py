"""A model in any layout, ready to answer; and back to files."""

import sys
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from astrollava_jax import files
from astrollava_jax.data.image import ImageError
from astrollava_jax.data.tiles import prepare_tiles
from astrollava_jax.inference.model import Dtype, Model
from astrollava_jax.models.llava import logical_axes
from astrollava_jax.params import split
from astrollava_jax.run.compiled import keep_compiled
from astrollava_jax.run.opening import Bases, Opened, open_any, read_params
from astrollava_jax.sharding import MeshConfig, placements
from astrollava_jax.weights.rotary import most_positions
from astrollava_jax.weights.save import save
from astrollava_jax.weights.sidecars import raw_config


def load_model(path: str, dtype: Dtype = "bfloat16", mesh: Mesh | None = None) -> Model:
    """Opens a model in any layout: HF, original LLaVA, a run directory, one of its checkpoints.

    Args:
        path: the model.
        dtype: what is computed in; float32 means the highest matmul precision too.
        mesh: devices to spread it over; unset = the first one.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read; says what was looked for.
    """
    return to_answer(open_any(path), path, dtype, mesh)


def to_answer(
    opened: Opened, name: str, dtype: Dtype = "bfloat16", mesh: Mesh | None = None
) -> Model:
    """An opened model with its numbers on the devices.

    Raises:
        ValueError: if it lacks parameters (two towers that were joined and not trained yet).
    """
    keep_compiled()
    source = opened.source
    if source.missing:
        raise ValueError(
            f"{name}: {', '.join(source.missing)} have no weights yet: train them first"
        )
    abstract = source.config.abstract()
    graphdef, shapes = split(abstract)
    mesh = mesh or MeshConfig().build(jax.local_devices()[:1])
    shardings = placements(logical_axes(abstract), shapes, mesh)
    return Model(
        name=name,
        config=source.config,
        graphdef=graphdef,
        params=read_params(opened, list(shapes), shardings, dict.fromkeys(shapes, np.dtype(dtype))),
        tokenizer=source.tokenizer,
        template=opened.template,
        image_mode=opened.image_mode,
        dtype=dtype,
        mesh=mesh,
        positions=most_positions(raw_config(source)),
        source=opened.base,
        changed=opened.changed,
    )


def save_model(
    model: Model, target: str, layout: Literal["hf", "llava", "orbax"], *, dtype: str | None = None
) -> None:
    """Writes a loaded model into a new directory, from the files that it was read from.

    What was not trained is written bit for bit; what was, in the dtype of the model it began from.

    Args:
        model: what `load_model` gave.
        target: the directory; it must not be there, or be empty.
        layout: `hf` for transformers and vLLM, `llava` for the original and llama.cpp, `orbax`.
        dtype: what all parameters become; each keeps its own unless given.

    Raises:
        ValueError: if the model was not loaded from files, or the layout cannot hold it.
    """
    if model.source is None:
        raise ValueError(f"{model.name}: was not loaded from files, so there is nothing to write")
    save(
        target,
        layout,
        model.source,
        model.changed,
        dtype=None if dtype is None else np.dtype(dtype),
        template=model.template,
        image_mode=model.image_mode,
    )


def ask(
    path: str,
    question: str,
    images: list[str],
    *,
    bases: Bases = (),
    dtype: Dtype = "bfloat16",
    max_new_tokens: int,
) -> str:
    """One answer about some pictures.

    Raises:
        FileNotFoundError, ValueError: if the model or a picture cannot be read; names it. The
            pictures are looked at first: a model takes minutes to load.
    """
    opened = open_any(path, bases=bases)
    for note in opened.source.notes:
        print(f"note: {note}", file=sys.stderr)  # the answer alone goes to stdout
    pictures = [_picture(opened, image) for image in images]
    model = to_answer(opened, path, dtype)
    return model.generate([pictures], [question], max_new_tokens=max_new_tokens)[0]


def _picture(opened: Opened, path: str) -> bytes:
    """The bytes of a picture that can be decoded."""
    content = files.read_bytes(path)
    try:
        prepare_tiles(content, opened.image_mode, opened.source.config.image_facts)
    except ImageError as error:
        raise ValueError(f"{path}: {error}; give another picture") from None
    return content
