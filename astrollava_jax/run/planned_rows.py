"""The rows of a run that are described without its records: of its kept plan, or assumed full."""

import dataclasses

from astrollava_jax import files
from astrollava_jax.batch import ImageFacts
from astrollava_jax.data.pack import BatchConfig
from astrollava_jax.data.rows import RowShape
from astrollava_jax.data.tiles import Layout, grid_of, layout, one_image
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.records import training_data

CAPTION, DIALOGUE = 24, 250
"""Words beside a picture, in tokens: a caption of the plain template, or a dialogue. LLaVA's
captions and AstroLLaVA's dialogues are about so long; so a row of 2048 holds three captioned
pictures of 576 features, or two pictures that are talked about."""

_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a step sees."""

    shape: RowShape
    count: int
    """Rows of a step, over all chips."""
    samples: int
    """Samples of a step, about."""
    picture: Layout
    """Of the pictures that a run may have, the one that takes most."""
    said: str
    """Where this is known from."""


def planned_rows(
    run: RunConfig, facts: ImageFacts, multiple: int, tokenizer_folder: str | None
) -> Rows:
    """What a step of the run sees, from its kept plan, else from the batch and an assumption.

    Args:
        run: the run.
        facts: of the model's images.
        multiple: what the number of rows must be a multiple of.
        tokenizer_folder: where the tokenizer's files are, if they are here.

    Raises:
        ValueError: if no picture fits into a row, or the rows do not divide over the mesh.
    """
    kept = _kept(run, facts, multiple, tokenizer_folder)
    return _assumed(run, facts, multiple) if kept is None else kept


def _kept(
    run: RunConfig, facts: ImageFacts, multiple: int, tokenizer_folder: str | None
) -> Rows | None:
    """What the run has measured of its records; None where that or its records are not here."""
    folder = files.join(run.out, "plan")
    here = tokenizer_folder and files.exists(folder) and files.names(folder)
    if not here or not all(files.is_folder(data.records) for data in run.data):
        return None
    assert tokenizer_folder is not None
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    plan = training_data(run, tokenizer, facts, multiple, keep=False).plan
    samples = max(plan.samples(step) for step in range(plan.total_steps))
    # Here each takes a place, also those that the run refuses.
    shape = plan.shape._replace(samples=max(plan.shape.samples, -(-samples // plan.rows)))
    said = f"the lengths kept in {folder}"
    return Rows(shape, plan.rows, samples, _picture(run, facts), said)


def _assumed(run: RunConfig, facts: ImageFacts, multiple: int) -> Rows:
    """Full rows of samples with one picture each; whatever is no picture is learned."""
    length, batch = run.batch.length, run.batch
    picture = _picture(run, facts)
    tiles, features = picture.tiles, len(picture.features)
    words = CAPTION if all(data.template == "plain" for data in run.data) else DIALOGUE
    pictures = length // (features + words)
    if batch.max_images is not None:
        if tiles > batch.max_images:
            raise ValueError(
                f"batch.max_images is {batch.max_images}, but one picture takes up to {tiles} "
                "images: make it at least that"
            )
        pictures = min(pictures, batch.max_images // tiles)
    pictures = max(1, pictures if batch.packing else 1)
    if features >= length:
        raise ValueError(
            f"batch.length is {length}, but one picture takes {features} positions: make it longer"
        )
    learned = -(-(length - pictures * features) // _MULTIPLE) * _MULTIPLE
    count, samples = _number(batch, pictures, multiple)
    said = (
        f"assumed: {pictures} sample(s) of {tiles} image(s) and {features} image positions in a "
        f"row, all of its other positions learned"
    )
    shape = RowShape(length, learned, pictures * tiles, pictures)
    return Rows(shape, count, samples, picture, said)


def _picture(run: RunConfig, facts: ImageFacts) -> Layout:
    """The picture that takes most tiles, and most positions among these."""
    if not any(data.image == "anyres" for data in run.data):
        return one_image(facts)
    found = [layout(canvas, facts) for canvas in grid_of(facts)]
    return max(found, key=lambda one: (one.tiles, len(one.features)))


def _number(batch: BatchConfig, pictures: int, multiple: int) -> tuple[int, int]:
    """Rows and samples of a step."""
    if batch.rows is not None:
        if batch.rows % multiple:
            raise ValueError(
                f"batch.rows is {batch.rows}, which does not divide over the mesh: make it a "
                f"multiple of {multiple}"
            )
        return batch.rows, batch.rows * pictures
    assert batch.samples is not None
    rows = -(-batch.samples // pictures)
    return -(-rows // multiple) * multiple, batch.samples
