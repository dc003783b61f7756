"""Example and Turn: the record that data preparation writes and training reads.

On disk an Example is one `tf.train.Example` message whose features are lists of bytes:

    id, caption, source, credit, license, url    one UTF-8 text each
    image                                        encoded pictures, zero or more
    turns/role, turns/text                       one text per turn, in step

Only this much of the protocol-buffer wire format is read and written here, so that neither needs
TensorFlow; equal examples give equal bytes.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, get_args

from astrollava_jax.data.faults import RecordError

Role = Literal["human", "assistant"]
IMAGE_MARKER = "<image>"

TEXT_FEATURES = ("caption", "credit", "id", "license", "source", "url")

Features = dict[str, list[bytes]]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One utterance of a dialogue."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample: encoded pictures (zero or more), a caption, a dialogue, and where it came from.

    The `<image>` marker may stand in a human turn; without a marker, images come first, as in
    LLaVA.
    """

    id: str
    images: tuple[bytes, ...] = ()
    turns: tuple[Turn, ...] = ()
    caption: str = ""
    source: str = ""
    credit: str = ""
    license: str = ""
    url: str = ""


def encode(example: Example) -> bytes:
    """The example as a serialised `tf.train.Example`.

    Raises:
        ValueError: if the id is empty, a turn's role is unknown, or a text has half a character.
    """
    if not example.id:
        raise ValueError("an example needs an id: it is how errors and logs name it")
    for number, turn in enumerate(example.turns):
        _check_role(turn.role, example.id, number)
    try:
        features: Features = {name: [getattr(example, name).encode()] for name in TEXT_FEATURES}
        features["turns/text"] = [turn.text.encode() for turn in example.turns]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"example {example.id!a}: expected text that UTF-8 can write, found half a character, "
            f"{error.object[error.start]!a}, at {error.start}"
        ) from None
    features["image"] = list(example.images)
    features["turns/role"] = [turn.role.encode() for turn in example.turns]
    return _write_features(features)


def decode(content: bytes) -> Example:
    """The example in a serialised `tf.train.Example`; features of other names are ignored.

    Raises:
        RecordError: if the bytes are no such message, the id is missing, a role is unknown, or the
            roles and texts are not equally many.
    """
    features = _read_features(content)
    texts = {name: _text(features, name) for name in TEXT_FEATURES}
    if not texts["id"]:
        found = sorted(features) or "none at all"
        raise RecordError(f"expected a feature 'id', found {found}", "message")
    return Example(
        images=tuple(features.get("image", ())), turns=_turns(features, texts["id"]), **texts
    )


def _check_role(role: str, example_id: str, number: int) -> None:
    if role not in get_args(Role):
        raise RecordError(
            f"example {example_id}, turn {number}: expected the role to be one of "
            f"{', '.join(get_args(Role))}, found {role!r}",
            "role",
        )


def _text(features: Features, name: str) -> str:
    values = features.get(name, [])
    if len(values) > 1:
        found = len(values)
        raise RecordError(f"feature {name!r}: expected one text, found {found}", "message")
    return _utf8(values[0], name) if values else ""


def _utf8(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        why = f"feature {name!r}: expected UTF-8 text, found {error.reason}"
        raise RecordError(why, "message") from None


def _turns(features: Features, example_id: str) -> tuple[Turn, ...]:
    roles = [_utf8(role, "turns/role") for role in features.get("turns/role", [])]
    texts = [_utf8(text, "turns/text") for text in features.get("turns/text", [])]
    if len(roles) != len(texts):
        raise RecordError(
            f"example {example_id}: expected as many roles as texts, "
            f"found {len(roles)} in turns/role and {len(texts)} in turns/text",
            "message",
        )
    for number, role in enumerate(roles):
        _check_role(role, example_id, number)
    return tuple(Turn(role, text) for role, text in zip(roles, texts))  # pyright: ignore


# The wire format. A message is a run of fields; a field is a varint `number << 3 | kind`, then its
# value. All fields met here have kind 2, a varint length and as many bytes:
#   Example.features = 1, Features.feature = 1 (a map: key = 1, value = 2), Feature.bytes_list = 1,
#   BytesList.value = 1.
# Source: https://protobuf.dev/programming-guides/encoding; tensorflow's example.proto.

_OTHER_KINDS = {1: 8, 5: 4}  # fixed-width kinds, in bytes
_NUMBERS = 2**29  # field numbers are below it
_SHORT = 5  # most bytes of the number of a field, and of a length
_OTHER_LISTS = (2, 3)  # of floats and integers, which no feature of ours holds


def _write_features(features: Features) -> bytes:
    """The message, its features in the order of their names."""
    entries = []
    for name in sorted(features):
        values = _message((1, value) for value in features[name])
        # An empty list is written too: TFDS tells "no turns" from "no such feature".
        entries.append(_message([(1, name.encode()), (2, _message([(1, values)]))]))
    return _message([(1, _message((1, entry) for entry in entries))])


def _message(fields: Iterable[tuple[int, bytes]]) -> bytes:
    pieces = []
    for number, value in fields:
        pieces += [_varint(number << 3 | 2), _varint(len(value)), value]
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    content.append(number)
    return bytes(content)


def _read_features(content: bytes) -> Features:
    found: Features = {}
    for features in _only(1, content, 0, len(content)):
        for entry in _only(1, content, *features):
            name, values = "", []
            for number, start, stop in _fields(content, *entry, known=(1, 2)):
                if number == 1:
                    name = _name(content, start, stop)
                elif number == 2:
                    for kind, *lists in _fields(content, start, stop):
                        if kind == 1:
                            values += [content[a:b] for a, b in _only(1, content, *lists)]
                        elif kind in _OTHER_LISTS:  # one of the three is meant: the last
                            values = []
            found[name] = values
    return found


def _name(content: bytes, start: int, stop: int) -> str:
    try:
        return content[start:stop].decode()
    except UnicodeDecodeError:
        raise _no_example(f"a feature's name at byte {start} is no UTF-8") from None


def _only(wanted: int, content: bytes, start: int, stop: int) -> list[tuple[int, int]]:
    """Where the values of the fields with one number stand, in their order."""
    return [(a, b) for number, a, b in _fields(content, start, stop) if number == wanted]


def _fields(
    content: bytes, position: int, end: int, known: tuple[int, ...] = ()
) -> list[tuple[int, int, int]]:
    """Number and place of the fields of a message that hold bytes; others are passed over.

    Nothing is copied: a picture stands some messages deep. With `known`, others are refused, as
    readers of maps do not agree on what an entry is that holds more than its key and value.
    """
    found = []
    while position < end:
        begun = position
        key, position = _read_varint(content, position, end, _SHORT)
        number, kind = key >> 3, key & 7
        if not 0 < number < _NUMBERS or (known and (number not in known or kind != 2)):
            raise _no_example(f"field {number} of kind {kind} at byte {begun}")
        if kind == 0:
            _, position = _read_varint(content, position, end)
            continue
        if kind == 2:
            length, position = _read_varint(content, position, end, _SHORT)
        elif kind in _OTHER_KINDS:
            length = _OTHER_KINDS[kind]
        else:
            raise _no_example(f"field {number} of kind {kind} at byte {begun}")
        if position + length > end:
            raise _no_example(f"a field of {length} bytes at byte {begun} is cut short")
        if kind == 2:
            found.append((number, position, position + length))
        position += length
    return found


def _read_varint(content: bytes, position: int, end: int, most: int = 10) -> tuple[int, int]:
    """The number of at most `most` bytes that starts at `position`, and the position after it."""
    if position < end and (number := content[position]) < 0x80:  # most are so short
        return number, position + 1
    number = 0
    for shift in range(0, 7 * most, 7):
        if position == end:
            raise _no_example(f"it ends inside a number, at byte {end}")
        byte = content[position]
        position += 1
        if byte < 0x80:
            return number | byte << shift, position
        number |= (byte & 0x7F) << shift
    raise _no_example(f"a number of more than {most} bytes, at byte {position - most}")


def _no_example(why: str) -> RecordError:
    return RecordError(f"not a tf.train.Example: {why}", "message")
