"""The record's wire form, against the protocol-buffer library itself."""

import dataclasses

import pytest
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from astrollava_jax.data import example
from astrollava_jax.data.example import Example, Turn, decode, encode

FULL = Example(
    id="apod-0001",
    images=(b"\xff\xd8\xff" + bytes(300), b"\x89PNG", b""),
    turns=(
        Turn("human", "<image>\nWas ist das? 🌌"),
        Turn("assistant", "Eine Spiralgalaxie, größer."),
    ),
    caption="A spiral.",
    source="APOD",
    credit="Someone",
    license="CC BY 4.0",
    url="https://example.org/1",
)


def _by_the_library(features: dict[str, list[bytes]]) -> bytes:
    message = tf_example_pb2.Example()
    for name, values in features.items():
        message.features.feature[name].bytes_list.value.extend(values)
    return message.SerializeToString()


@pytest.mark.parametrize("one", [FULL, Example(id="x"), Example("y", images=(b"a" * 70_000,))])
def test_what_is_written_is_read(one):
    assert decode(encode(one)) == one


def test_the_library_reads_what_we_write():
    message = tf_example_pb2.Example.FromString(encode(FULL))
    found = {name: list(value.bytes_list.value) for name, value in message.features.feature.items()}
    assert found == {
        "id": [b"apod-0001"],
        "image": list(FULL.images),
        "turns/role": [b"human", b"assistant"],
        "turns/text": [turn.text.encode() for turn in FULL.turns],
        "caption": [b"A spiral."],
        "source": [b"APOD"],
        "credit": [b"Someone"],
        "license": [b"CC BY 4.0"],
        "url": [b"https://example.org/1"],
    }


def test_our_bytes_are_the_librarys_deterministic_bytes():
    message = tf_example_pb2.Example.FromString(encode(FULL))
    assert message.SerializeToString(deterministic=True) == encode(FULL)


def test_an_empty_list_is_written_as_a_list():
    message = tf_example_pb2.Example.FromString(encode(Example(id="x")))
    assert message.features.feature["image"].HasField("bytes_list")


def test_we_read_what_the_library_writes():
    content = _by_the_library(
        {"id": [b"7"], "image": [b"abc"], "turns/role": [b"human"], "turns/text": ["né".encode()]}
    )
    assert decode(content) == Example("7", images=(b"abc",), turns=(Turn("human", "né"),))


def test_features_of_other_names_and_kinds_are_ignored():
    message = tf_example_pb2.Example.FromString(encode(FULL))
    message.features.feature["label"].int64_list.value.extend([1, -1])
    message.features.feature["score"].float_list.value.extend([0.5])
    assert decode(message.SerializeToString()) == FULL


@pytest.mark.parametrize(
    "features, message",
    [
        ({"image": [b"abc"]}, "expected a feature 'id', found \\['image'\\]"),
        ({"id": [b""]}, "expected a feature 'id'"),
        ({"id": [b"a", b"b"]}, "'id': expected one text, found 2"),
        ({"id": [b"\xff"]}, "'id': expected UTF-8"),
        (
            {"id": [b"a"], "turns/role": [b"human"]},
            "example a: .* found 1 in turns/role and 0 in turns/text",
        ),
        (
            {"id": [b"a"], "turns/role": [b"gpt"], "turns/text": [b"Hi"]},
            "example a, turn 0: .* human, assistant, found 'gpt'",
        ),
    ],
)
def test_what_is_no_record_of_ours_is_named(features, message):
    with pytest.raises(ValueError, match=message):
        decode(_by_the_library(features))


def test_other_bytes_are_no_example():
    for content in (encode(FULL)[:-1], encode(FULL)[:100], b"\x0b", b"\x80", b"\x80" * 20):
        with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
            decode(content)
    with pytest.raises(ValueError, match="none at all"):
        decode(b"")


def features_by_the_library(content: bytes) -> dict[str, list[bytes]] | None:
    """What the library reads; None where it refuses."""
    try:
        message = tf_example_pb2.Example.FromString(content)
    except DecodeError:
        return None
    return {name: list(found.bytes_list.value) for name, found in message.features.feature.items()}


def field(number: int, content: bytes, kind: int = 2) -> bytes:
    """A field of a message, short enough for one byte of length."""
    return bytes([number << 3 | kind, *([len(content)] if kind == 2 else [])]) + content


ID, OTHER = field(1, b"id"), field(1, b"url")
VALUE = field(2, field(1, field(1, b"7")))
FLOATS = field(2, field(2, field(1, bytes(4))))
CORNERS = {
    "a name said twice": OTHER + ID + VALUE,
    "a value in two parts": ID + VALUE + VALUE,
    "first words, then floats": ID + VALUE + FLOATS,
    "first floats, then words": ID + FLOATS + VALUE,
    "no name": VALUE,
    "no value": ID,
}


@pytest.mark.parametrize("corner", CORNERS)
def test_corners_of_the_form_are_read_as_the_library_reads_them(corner):
    content = field(1, field(1, CORNERS[corner]))
    assert example._read_features(content) == features_by_the_library(content)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ID + VALUE + field(3, b"x"), "field 3 of kind 2 at byte 15"),
        (ID + field(2, bytes(4), kind=5) + VALUE, "field 2 of kind 5 at byte 8"),
        (ID + field(0, b"x") + VALUE, "field 0 of kind 2 at byte 8"),
        (field(1, b"\xff") + VALUE, "name at byte 6 is no UTF-8"),
        (b"\x8a\x80\x80\x80\x80\x00" + ID[1:] + VALUE, "more than 5 bytes, at byte 4"),
    ],
)
def test_what_readers_do_not_agree_upon_is_refused_with_its_place(entry, message):
    with pytest.raises(ValueError, match=rf"not a tf\.train\.Example: .*{message}"):
        decode(field(1, field(1, entry)))


def test_no_flipped_bit_is_read_otherwise_than_by_the_library():
    whole = encode(dataclasses.replace(FULL, images=(b"\xff\xd8\xff", b"\x89PNG", b"")))
    read = 0
    for place in range(0, 8 * len(whole), 3):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        expected = features_by_the_library(bytes(content))
        try:
            found = example._read_features(bytes(content))
        except ValueError:
            continue
        # The library looks into lists of numbers, too, which are passed over here.
        assert expected is None or found == expected, place
        read += expected is not None
    assert read > len(whole), "most bits are of a text"


def test_what_cannot_be_read_back_is_not_written():
    with pytest.raises(ValueError, match="needs an id"):
        encode(Example(id=""))
    with pytest.raises(ValueError, match=r"turn 1: .* found 'gpt'"):
        encode(Example("a", turns=(Turn("human", "Hi"), _turn_of_another_role())))


def _turn_of_another_role() -> Turn:
    turn = Turn("assistant", "Hello")
    object.__setattr__(turn, "role", "gpt")
    return turn
