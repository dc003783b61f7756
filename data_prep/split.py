"""Keeps some samples for evaluation, group by group, the same ones on every machine."""

import hashlib
from collections.abc import Iterable, Sequence

from astrollava_jax import files
from astrollava_jax.data.tfrecord import SetInfo


def together(sets: Iterable[SetInfo]) -> list[SetInfo]:
    """The sets of a split, each written when it is asked for: all of them stay, or none."""
    written = []
    try:
        for done in sets:
            written.append(done)
    except BaseException:  # an interruption too: half of a split would pass for all there is
        for done in written:
            files.remove(done.folder)
        raise
    return written


def held_out(groups: Iterable[str], fraction: float, seed: int = 0) -> frozenset[str]:
    """The groups to keep out of training: `fraction` of them, rounded, but at least one.

    A group (an image, an object of the sky) is kept whole, so that nothing seen in training is
    asked about afterwards. The order is that of a hash, so that it depends on the names alone.

    Raises:
        ValueError: if the fraction is not in [0, 1), or nothing would be left to train on.
    """
    if not 0 <= fraction < 1:
        raise ValueError(
            f"expected a held-out fraction of at least 0 and below 1, found {fraction}"
        )
    names = sorted(
        set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest()
    )
    if fraction == 0:
        return frozenset()
    count = max(1, round(fraction * len(names)))
    if count >= len(names):
        raise ValueError(
            f"holding out {fraction} of {len(names)} different images would leave none to train on"
        )
    return frozenset(names[:count])


def connected(samples: Sequence[Sequence[str]]) -> list[str]:
    """The group of each sample: those that share an image, at whatever remove, have one group.

        [["b", "c"], ["a", "b"], ["c"], ["d"]] -> ["a", "a", "a", "d"]

    A group has the name of its first image in alphabetical order, in whatever order they come.
    """
    above: dict[str, str] = {}  # a union-find forest: a name that stands above itself is a group

    def group(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]  # halves the way for the next who comes by
            name = above[name]
        return name

    for first, *others in samples:
        for other in others:
            lower, higher = sorted([group(first), group(other)])
            above[higher] = lower
    return [group(first) for first, *_ in samples]
