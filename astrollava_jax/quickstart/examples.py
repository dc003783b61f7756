"""Records of the simulated sky: each scene's picture with its words."""

import concurrent.futures
import functools
import multiprocessing
import re
from collections.abc import Iterator

from astrollava_jax.data import workers as worker_processes
from astrollava_jax.data.example import Example
from astrollava_jax.quickstart.pictures import draw, encode_png
from astrollava_jax.quickstart.sky import Scene, scene
from astrollava_jax.quickstart.words import caption, dialogue

SOURCE = "simulated sky"

_CHUNK = 64  # scenes that a worker process takes at a time


def examples(
    seed: int, count: int, *, start: int = 0, size: int = 64, workers: int = 1
) -> Iterator[Example]:
    """The scenes `start` to `start + count` of a sky, in order, whatever the number of workers.

    Args:
        seed: names the sky.
        count: how many examples to make.
        start: the index of the first.
        size: side of the pictures in pixels.
        workers: processes that draw; they are spawned, so a script needs its `__main__` guard.
    """
    make = functools.partial(example, seed, size=size)
    indices = range(start, start + count)
    if workers == 1:
        yield from map(make, indices)
        return
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawned, worker_processes.begin) as pool:
        with worker_processes.shielded():
            drawn = pool.map(make, indices, chunksize=_CHUNK)
        yield from drawn


def example(seed: int, index: int, *, size: int = 64) -> Example:
    """One scene as a record; its id says which scene it is."""
    shown = scene(seed, index)
    return Example(
        id=f"sky-{seed}-{index}",
        images=(encode_png(draw(shown, size)),),
        turns=dialogue(shown),
        caption=caption(shown),
        source=SOURCE,
        license="CC0",
    )


def scene_of(example_id: str) -> Scene:
    """The scene behind a record of the simulated sky: the truth about its picture.

    Raises:
        ValueError: if the id is not one that `example` gives.
    """
    found = re.fullmatch(r"sky-(\d+)-(\d+)", example_id)
    if not found:
        raise ValueError(f"expected an id like sky-0-12 (seed, index), found {example_id!r}")
    return scene(int(found[1]), int(found[2]))
