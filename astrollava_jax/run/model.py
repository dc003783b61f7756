"""A model in any layout, ready to answer; and back to files."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from astrollava_jax.inference.model import Dtype, Model
from astrollava_jax.models.llava import logical_axes
from astrollava_jax.params import split
from astrollava_jax.run.directory import Opened, open_any, read_params
from astrollava_jax.sharding import MeshConfig, placements


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
        image_mode=opened.image_mode,  # pyright: ignore[reportArgumentType]
        dtype=dtype,
        mesh=mesh,
    )


def ask(
    path: str, question: str, images: list[str], *, dtype: Dtype = "bfloat16", max_new_tokens: int
) -> str:
    """One answer about some pictures."""
    model = load_model(path, dtype)
    pictures: list[Any] = list(images)
    return model.generate([pictures], [question], max_new_tokens=max_new_tokens)[0]
