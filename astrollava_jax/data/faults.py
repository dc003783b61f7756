"""What can be wrong with records, and what is done about it.

A record that is at fault keeps its place in the order with its loss off, is counted by kind, and is
named in the log: no other record moves, in this run or in one that goes on. Storage that does not
answer is no fault of a record: reading is tried again, and then the run stops, before it has taken
a step without that record.
"""

import dataclasses
from typing import Literal

Kind = Literal["checksum", "message", "role", "image", "dialogue", "changed"]

KINDS: dict[Kind, str] = {
    "checksum": "its bytes do not match their CRC32C",
    "message": "it is no Example, has no id, or holds text that is not UTF-8",
    "role": "a turn is spoken by somebody unknown",
    "image": "a picture is damaged, cut short, too large, or of a form that is not read",
    "dialogue": "its template has no place for what it holds, or the row is too short for it",
    "changed": "it is not as it was measured when the run began",
}
"""Why a record has its loss off."""

DAMAGED = frozenset[Kind](("checksum", "message", "role", "image"))
"""The kinds that count against `bad_records.max_fraction`: the record's bytes are at fault."""

_LONGEST_NAME = 120
_LONGEST_REASON = 500


class RecordError(ValueError):
    """A record that cannot be used as it should have been."""

    def __init__(self, message: str, kind: Kind = "dialogue"):
        super().__init__(message)
        self.kind: Kind = kind

    def __reduce__(self):
        return type(self), (str(self), self.kind)


class StorageError(OSError):
    """Storage that stopped answering; the run can go on once it answers again."""

    resumable = True


@dataclasses.dataclass(frozen=True)
class Fault:
    """A record that could not be used as it should have been; its texts are fit for a terminal."""

    record: str
    """Its id, empty where it could not be read."""
    where: str
    why: str
    kind: Kind

    @classmethod
    def of(cls, error: ValueError, name: str, where: str) -> "Fault":
        """What an error says of a record."""
        kind = error.kind if isinstance(error, RecordError) else "dialogue"
        return cls(visible(name), where, visible(str(error), _LONGEST_REASON), kind)

    @property
    def damaged(self) -> bool:
        """Whether its bytes are at fault; else its template, or the row's length, refuses it."""
        return self.kind in DAMAGED


def visible(text: str, longest: int = _LONGEST_NAME) -> str:
    r"""Text of a record as one short line: control, bidi and half characters by their numbers.

    >>> visible("star\x1b[2J")
    'star\\x1b[2J'
    """
    cut = text if len(text) <= longest else f"{text[:longest]}... of {len(text)} characters"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in cut
    )
