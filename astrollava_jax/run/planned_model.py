"""The shape of the model that a run begins from: no weights are looked at."""

import dataclasses
from collections.abc import Sequence

from astrollava_jax import files
from astrollava_jax.config import ConfigError, load
from astrollava_jax.run import directory
from astrollava_jax.run.config import InitConfig, RunConfig
from astrollava_jax.weights.outline import Outline, joined, outline
from astrollava_jax.weights.resize import resized_config


def planned_model(
    init: InitConfig, folder: str, shape: str | None = None, later: Sequence[str] = ()
) -> Outline:
    """The shape of a run's model, from its config files or from the table of published shapes.

    Args:
        init: what the run begins from.
        folder: that of the run's file. A run that has not been begun is looked for among the files
            there: the one whose `out` it is says what it will be.
        shape: a published name, or a directory, in place of the models that the run names.
        later: files of runs that begin from this one, the last of them first.

    Raises:
        FileNotFoundError, ValueError: if it is neither here nor known, or the runs begin from one
            another in a circle; says what is.
    """
    run = directory.run_folder(init.model)
    if shape is not None:
        found = outline(shape)
    elif run is not None:
        found = planned_model(directory.original_init(run[0]), folder, later=later)
    elif init.model is not None and (made := _to_be_made(init.model, folder)) is not None:
        file, before = made
        if file in later:
            circle = [*later[later.index(file) :], file]
            raise ValueError(
                "init.model goes round in a circle, of runs that have not been begun: "
                f"{' begins from '.join(circle)}; one of them must begin from a model"
            )
        found = planned_model(before, folder, later=(*later, file))
        note = f"{init.model} is not here: the model of {file}, which will make it, is taken"
        found = dataclasses.replace(found, notes=(note, *found.notes))
    elif init.model is not None:
        found = outline(init.model, vision=init.vision, llm=init.llm, base=init.base)
    else:
        assert init.vision is not None and init.llm is not None
        found = joined(init.vision, init.llm)
    config = resized_config(found.config, init.image_size, init.grid)
    return dataclasses.replace(found, config=config)


def _to_be_made(path: str, folder: str) -> tuple[str, InitConfig] | None:
    """The file of the run that will make a directory, and what that run begins from."""
    if files.exists(path):
        return None
    for name in files.names(folder, r".*\.yaml"):
        file = files.join(folder, name)
        try:
            run = load(RunConfig, file)
        except ConfigError:
            continue  # a file of something else
        if files.absolute(run.out) == files.absolute(path):
            return file, run.init
    return None
