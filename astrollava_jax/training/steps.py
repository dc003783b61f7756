"""The folder of a run's checkpoints: which steps are good, what is set aside, what is removed.

<step>/              trusted once its manifest is complete
<step>.<why>/        set aside: `damaged-...`, `untrusted`, `diverged`; never read, never removed
<step>.unfinished/   killed before its manifest was; removed when the next step is good
"""

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Sequence

from astrollava_jax import files
from astrollava_jax.training import manifest

_STEP = r"\d+"
_LEFT = r"\d+\.orbax-checkpoint-tmp.*|\d+\.removing"
"""What a save or a removal leaves behind that was killed."""
_UNFINISHED = r"\d+\.unfinished(-\d+)?"

Tell = Callable[[str], None]


def steps(folder: str) -> list[int]:
    """The steps of a checkpoint folder that were found whole when they were saved, in order."""
    if not files.is_folder(folder):
        return []
    numbers = sorted(int(name) for name in files.names(folder, _STEP))
    return [step for step in numbers if manifest.is_trusted(files.join(folder, str(step)))]


def untrusted(folder: str) -> list[int]:
    """The steps that have no complete manifest, in order."""
    good = set(steps(folder))
    return [step for step in sorted(map(int, files.names(folder, _STEP))) if step not in good]


def is_left(name: str) -> bool:
    """Whether a name is that of a step which is being written or removed, or was when killed."""
    return re.fullmatch(_LEFT, name) is not None


def aside(folder: str) -> list[str]:
    """The names of what was set aside."""
    return files.names(folder, r"\d+\..+")


def set_aside(folder: str, step: int, why: str) -> str:
    """Moves a step out of the way under a name that says why; returns where it stands now."""
    reason = re.sub(r"[^a-z0-9]+", "-", why.lower()).strip("-")[:60] or "unknown"
    for number in itertools.count(1):
        name = f"{step}.{reason}" + (f"-{number}" if number > 1 else "")
        target = files.join(folder, name)
        if not files.exists(target):
            files.move(files.join(folder, str(step)), target)
            return target
    raise AssertionError


def clean(folder: str, tell: Tell) -> None:
    """Removes what killed processes left, and sets aside steps that nobody has found whole.

    Only for who trains in the folder alone.
    """
    files.remove_unfinished(folder)
    for name in files.names(folder, _LEFT):
        files.remove(files.join(folder, name))
        tell(f"{folder}/{name}: removed, the rest of a save that was cut short")
    for step in untrusted(folder):
        # At most one save is under way: only the newest step can be one that was cut short.
        cut_short = not any(other > step for other in [*steps(folder), *untrusted(folder)])
        target = set_aside(folder, step, "unfinished" if cut_short else "untrusted")
        tell(
            f"{folder}/{step} has no complete manifest and is not used: "
            + ("its save was cut short" if cut_short else "it was lost, or an older version saved")
            + f"; it stands in {target}"
            + (" until the next checkpoint is good" if cut_short else "")
        )


def put_away(folder: str, step: int) -> None:
    """Leaves nothing of a save that failed, as far as the disk lets it.

    Files that were written without an error, and are wrong, are set aside: evidence. Threads of
    Orbax may still write there, and make again what is gone: hence the patience.
    """
    if manifest.is_trusted(files.join(folder, str(step))):
        set_aside(folder, step, "damaged-when-written")
    for _ in range(20):
        left = files.names(folder, rf"{step}(\.orbax-checkpoint-tmp.*)?")
        for name in left:
            with contextlib.suppress(OSError):
                files.remove(files.join(folder, name))
        if not left:
            return
        time.sleep(0.1)


def prune(folder: str, keep: int, keep_seconds: float | None) -> None:
    """Removes good steps beyond the newest `keep`, but one per `keep_seconds`, and unfinished ones.

    A step is renamed before it is removed: what is left when that is cut short is no step.
    """
    good = steps(folder)
    stays = spaced(_times(folder, good[:-keep]), keep_seconds) if keep_seconds else ()
    for step in good[:-keep]:
        if step not in stays:
            removing = files.join(folder, f"{step}.removing")
            files.move(files.join(folder, str(step)), removing)
            files.remove(removing)
    for name in files.names(folder, _UNFINISHED):
        files.remove(files.join(folder, name))


def was_cut_short(name: str) -> bool:
    """Whether a name is of the rest of a save or a removal, and not of a step set aside."""
    return is_left(name) or re.fullmatch(_UNFINISHED, name) is not None


def spaced(times: dict[int, int], seconds: float) -> list[int]:
    """The steps that stay for their age: the first, and each that is so much younger than the last.

    What stays once, stays: the choice goes from the oldest on.
    """
    stays: list[int] = []
    for step, saved_at in sorted(times.items()):
        if not stays or saved_at - times[stays[-1]] >= seconds:
            stays.append(step)
    return stays


def _times(folder: str, numbers: Sequence[int]) -> dict[int, int]:
    """When steps were saved; one whose manifest is damaged is of no use, and is left out."""
    times = {}
    for step in numbers:
        with contextlib.suppress(ValueError, OSError):
            times[step] = manifest.read(files.join(folder, str(step))).saved_at
    return times
