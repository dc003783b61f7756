"""The shape of the model that a run begins from: no weights are looked at."""

import dataclasses

from astrollava_jax.run import directory
from astrollava_jax.run.config import InitConfig
from astrollava_jax.weights.outline import Outline, joined, outline
from astrollava_jax.weights.resize import resized_config


def planned_model(init: InitConfig, shape: str | None = None) -> Outline:
    """The shape of a run's model, from its config files or from the table of published shapes.

    Args:
        init: what the run begins from.
        shape: a published name, or a directory, in place of the models that it names.

    Raises:
        FileNotFoundError, ValueError: if it is neither here nor known; says what is.
    """
    run = directory.run_folder(init.model)
    if shape is not None:
        found = outline(shape)
    elif run is not None:
        found = planned_model(directory.original_init(run[0]))
    elif init.model is not None:
        found = outline(init.model, vision=init.vision, llm=init.llm, base=init.base)
    else:
        assert init.vision is not None and init.llm is not None
        found = joined(init.vision, init.llm)
    config = resized_config(found.config, init.image_size, init.grid)
    return dataclasses.replace(found, config=config)
