"""One sample of LLaVA JSON: its words and the names of its pictures, then the record of both."""

import dataclasses
import itertools
import posixpath
from typing import Any

from astrollava_jax import files
from astrollava_jax.data import image
from astrollava_jax.data.example import IMAGE_MARKER, Example, Role, Turn
from data_prep.tally import Refused

ROLES: dict[str, Role] = {"human": "human", "gpt": "assistant", "astrollava": "assistant"}
KEPT_TEXTS = ("caption", "source", "credit", "license", "url")

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Where a sample's pictures are, and how they are stored."""

    folder: str
    size: int
    """Pixels of the longer (`pad`) or shorter (`crop`) side; 0 keeps every picture's own."""
    mode: image.Mode
    by_id: bool
    """Whether a sample without `image` has its picture in `<id>.jpg`."""

    def of(self, sample: Sample, sample_id: str) -> tuple[str, ...]:
        """The names of a sample's pictures, in order; one file has one name.

        Raises:
            Refused: if one of them cannot be in the folder, or is not there.
        """
        named = sample.get("image")
        if named is None or named == "":
            named = [f"{sample_id}.jpg"] if self.by_id else []
        names = named if isinstance(named, list) else [named]
        return tuple(self._found(name, sample_id) for name in names)

    def load(self, name: str, sample_id: str) -> bytes:
        """One picture as records keep it.

        Raises:
            Refused: if it cannot be read or decoded.
        """
        path = files.join(self.folder, name)
        try:
            encoded = files.read_bytes(path)
        except OSError as error:
            reason = f"{sample_id}: {path}: {error.strerror}"
            raise Refused("image file cannot be read", reason) from None
        try:
            return image.fit(encoded, self.size or image.MAX_PIXELS, self.mode)
        except image.ImageError as error:
            raise Refused("image cannot be decoded", f"{sample_id}: {path}: {error}") from None

    def _found(self, name: Any, sample_id: str) -> str:
        if not isinstance(name, str) or not name:
            raise Refused("image is neither a path nor a list of paths", sample_id)
        if "\0" in name or _half_character(name) is not None:
            raise Refused("image path that no file can have", f"{sample_id}: {name!a}")
        short = posixpath.normpath(name)
        if short.startswith("/"):
            raise Refused("image path does not start from the folder", f"{sample_id}: {name}")
        if short.split("/")[0] == "..":
            raise Refused("image path leads out of the folder", f"{sample_id}: {name}")
        path = files.join(self.folder, short)
        if files.is_folder(path):
            raise Refused("image is a folder, not a file", f"{sample_id}: {path}")
        if not files.exists(path):
            raise Refused("image file missing", f"{sample_id}: {path}")
        return short


@dataclasses.dataclass(frozen=True)
class Draft:
    """A sample that can be taken as far as one sees without reading its pictures."""

    words: Example
    """The record, still without pictures."""
    names: tuple[str, ...]
    """Of its pictures, in order."""
    changes: tuple[str, ...]
    """What had to be changed to make it a record."""


def read_sample(sample: Any, number: int, pictures: Pictures) -> Draft:
    """The sample's words, and the names of its pictures, which are in the folder.

    Raises:
        Refused: if it cannot be a record; says why.
    """
    if not isinstance(sample, dict):
        raise Refused("not an object with keys", f"sample {number} is a {type(sample).__name__}")
    sample_id = _id(sample, number)
    texts = {key: sample[key] for key in KEPT_TEXTS if isinstance(sample.get(key), str)}
    turns, changes = _turns(sample, sample_id)
    if not texts.get("caption") and not any(turn.role == "assistant" for turn in turns):
        raise Refused("no answer and no caption to learn", sample_id)
    for where, text in [*texts.items(), *((f"a turn of {turn.role}", turn.text) for turn in turns)]:
        _check_characters(text, f"{sample_id}: {where}")
    names = pictures.of(sample, sample_id)
    _check_markers(turns, len(names), sample_id)
    return Draft(Example(id=sample_id, turns=turns, **texts), names, changes)


def to_example(draft: Draft, pictures: Pictures) -> Example:
    """The record, with its pictures.

    Raises:
        Refused: if one of them cannot be read or decoded.
    """
    images = tuple(pictures.load(name, draft.words.id) for name in draft.names)
    return dataclasses.replace(draft.words, images=images)


def _id(sample: Sample, number: int) -> str:
    """The sample's own id, else its place in the file."""
    own = sample.get("id")
    if own is None or own == "":
        return f"sample-{number}"
    if isinstance(own, bool) or not isinstance(own, str | int | float):
        found = type(own).__name__
        raise Refused("id is neither a text nor a number", f"sample {number}: found a {found}")
    _check_characters(str(own), f"sample {number}: id")
    return str(own)


def _check_characters(text: str, where: str) -> None:
    place = _half_character(text)
    if place is not None:
        raise Refused("text with half a character", f"{where}: {text[place]!a} at {place}")


def _half_character(text: str) -> int | None:
    r"""Where the text has one half of a surrogate pair, as JSON's `"\ud83d"`; UTF-8 has no such."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _turns(sample: Sample, sample_id: str) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    turns = tuple(_turn(*pair, sample_id) for pair in _pairs(sample, sample_id))
    changes = ()
    if turns and turns[0].role == "assistant":  # as LLaVA's preprocess_v1 does
        turns = turns[1:]
        changes = ("the assistant spoke first: that turn left out, as LLaVA does",)
    for number, (before, after) in enumerate(itertools.pairwise(turns)):
        if before.role == after.role:
            raise Refused("turns do not alternate", f"{sample_id}: two of {after.role} at {number}")
    return turns, changes


def _pairs(sample: Sample, sample_id: str) -> list[tuple[Any, Any]]:
    """The (role, text) pairs, from a list of turns or from a dict of two lists."""
    spoken = sample.get("conversations", sample.get("conversation"))
    if spoken is None:
        return []
    if isinstance(spoken, dict):
        roles, texts = spoken.get("from"), spoken.get("value")
        if isinstance(roles, list) and isinstance(texts, list) and len(roles) == len(texts):
            return list(zip(roles, texts))
    elif isinstance(spoken, list) and all(isinstance(turn, dict) for turn in spoken):
        return [(turn.get("from"), turn.get("value")) for turn in spoken]
    raise Refused("conversations are not a list of turns", sample_id)


def _turn(role: Any, text: Any, sample_id: str) -> Turn:
    if not isinstance(role, str) or role not in ROLES:
        expected = ", ".join(ROLES)
        raise Refused("unknown role", f"{sample_id}: {role!r}, expected one of {expected}")
    if not isinstance(text, str):
        found = type(text).__name__
        raise Refused("turn that is not a text", f"{sample_id}: of {role}, found a {found}")
    if not text.strip():
        raise Refused("empty turn", f"{sample_id}: of {role}")
    return Turn(ROLES[role], text)


def _check_markers(turns: tuple[Turn, ...], images: int, sample_id: str) -> None:
    """Markers may be absent: images come first then. Otherwise each stands for one image."""
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns if turn.role == "human")
    if markers and markers != images:
        raise Refused(
            f"wrong number of {IMAGE_MARKER} markers",
            f"{sample_id}: {markers} for {images} image{'' if images == 1 else 's'}",
        )
