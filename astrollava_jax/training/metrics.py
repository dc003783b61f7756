"""The two files in which a run keeps what it measured.

JSON knows no NaN: a number that is not finite stands in `log.jsonl` as "NaN", "Infinity" or
"-Infinity", which Python's `float` reads; `read_log` gives them back as floats.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from astrollava_jax import files

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonLines:
    """One JSON object per line, appended; a reader takes the last line of a step."""

    def __init__(self, path: str):
        torn = files.exists(path) and not files.read_bytes(path).endswith(b"\n")
        self._handle = files.open_append(path)
        if torn and files.size_bytes(path):
            self._handle.write("\n")  # a killed run can leave half a line

    def write(self, facts: Mapping[str, Any]) -> None:
        """Appends one line; floats keep all their digits."""
        self._handle.write(json.dumps(_in_words(facts), allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()


class TensorBoard:
    """Scalars as TensorBoard event files."""

    def __init__(self, folder: str):
        # Imported late: it takes half a second that a dry run need not wait.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(files.make_folder(folder))

    def write(self, step: int, facts: Mapping[str, Any]) -> None:
        """Adds the numbers among `facts` at a step."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in facts.items()
            if isinstance(value, int | float) and name not in ("step", "time", "began")
        ]
        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue]
            step=step, wall_time=time.time(), summary=Summary(value=values)
        )
        self._writer.add_event(event)

    def close(self) -> None:
        """Writes what is buffered and closes the files."""
        self._writer.close()


def read_log(path: str) -> list[dict[str, Any]]:
    """The steps of a `log.jsonl` in order, the last line of each; a torn last line is left out."""
    found: dict[int, dict[str, Any]] = {}
    for facts in read_lines(path):
        found[facts["step"]] = {**found.get(facts["step"], {}), **facts}
    return [found[step] for step in sorted(found)]


def read_lines(path: str) -> Iterator[dict[str, Any]]:
    """All lines of a `log.jsonl` as they were written; a torn one is left out."""
    if not files.exists(path):
        return
    for line in files.read_bytes(path).splitlines():
        try:
            facts = json.loads(line, object_hook=_in_numbers)
        except ValueError:
            continue
        if isinstance(facts, dict) and isinstance(facts.get("step"), int):
            yield facts


def last_attempt(path: str) -> int:
    """The number of the newest attempt in a `log.jsonl`; 0 if there is none.

    It need not stand at the last step: an attempt that goes on from an earlier one can be
    interrupted before it comes as far as the one before it.
    """
    return max((facts.get("attempt", 0) for facts in read_lines(path)), default=0)


def _in_words(value: Any) -> Any:
    """A tree of facts without floats that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _in_words(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word, number in NOT_FINITE.items() if str(number) == str(value))
    return value


def _in_numbers(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        key: NOT_FINITE.get(item, item) if isinstance(item, str) else item
        for key, item in facts.items()
    }
