"""What can keep a checkpoint from being written, in words that say what to do."""

from collections.abc import Mapping

from astrollava_jax.training import storage


class NotFinite(ValueError):
    """The state holds numbers that are none; nothing was written."""


class SaveFailed(ValueError):
    """A checkpoint could not be written; the ones before it stand."""


def not_finite(step: int, counts: Mapping[str, int], last_good: int | None) -> NotFinite:
    """A state that is not to be saved.

    Args:
        step: of the run.
        counts: how many numbers are not finite, by the array that holds them.
        last_good: the newest good step.
    """
    told = "\n  ".join(f"{address}: {count}" for address, count in sorted(counts.items()))
    return NotFinite(
        f"step {step} holds numbers that are not finite, and is not saved; the last good "
        f"checkpoint is {last_good}\n  {told}"
    )


def not_written(path: str, error: BaseException, last_good: str | None) -> SaveFailed:
    """A save that met an error on its way; `last_good` is the path of the newest good step."""
    first = storage.reason(error) or next(iter(str(error).splitlines()), "")[:500]
    return SaveFailed(
        f"{path}: this checkpoint could not be saved ({type(error).__name__}: {first}); the last "
        f"good one is {last_good or 'none'}: mend the storage, then start again"
    )


def nowhere(why: str, last_good: int | None) -> SaveFailed:
    """A run whose directory is lost while it goes on; `why` names it, and what became of it."""
    good = "no checkpoint was" if last_good is None else f"checkpoint {last_good} was the last"
    return SaveFailed(
        f"{why}: nothing can be saved there, and {good} good; put the directory back and start "
        "again to go on from what it holds, or choose another `out`"
    )
