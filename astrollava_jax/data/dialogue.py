"""A record's turns put in order for a template: roles checked, images placed."""

import dataclasses
from collections.abc import Sequence

from astrollava_jax.data.example import IMAGE_MARKER, Role, Turn

_AROUND_TURN = 16


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn as a template writes it: `images` come before the text, which holds no marker."""

    role: Role
    text: str
    images: int = 0


def messages_of(turns: Sequence[Turn], num_images: int) -> list[Message]:
    """The turns with their images placed, beginning with a human's.

    A leading answer is dropped. A human turn with images is stripped; others are left as they are.

    Raises:
        ValueError: if roles do not alternate, if markers and images differ in number, or if no
            human turn is left.
    """
    _check_markers(turns, num_images)
    dropped = 1 if turns and turns[0].role != "human" else 0
    kept = turns[dropped:]
    _check_roles(kept, dropped)
    without_marker = not any(_markers(turn) for turn in turns)
    messages = []
    for number, turn in enumerate(kept):
        images = num_images if without_marker and number == 0 else _markers(turn)
        text = turn.text.replace(IMAGE_MARKER, "").strip() if images else turn.text
        messages.append(Message(turn.role, text, images))
    return messages


def captioned(turns: Sequence[Turn], caption: str, num_images: int) -> list[Message]:
    """The images alone, and the caption (else the first answer) as what is said of them.

    Raises:
        ValueError: if there is neither, or if markers and images differ in number.
    """
    _check_markers(turns, num_images)
    replies = (turn.text for turn in turns if turn.role == "assistant")
    text = caption or next(replies, "")
    if not text:
        raise ValueError("expected a caption or an answer to learn, found neither")
    return [Message("human", "", num_images), Message("assistant", text)]


def shortened(turns: Sequence[Turn], caption: str, most: int) -> tuple[tuple[Turn, ...], str]:
    """A record's words, without what lies more than `most` characters behind their beginning.

    It is far beyond the end of any row, so that it need not be tokenised (the ids of a million
    characters take 5 seconds and 1.5 GB). Markers of images stay; of the turns that have none and
    lie behind, a tail is left out. Every turn counts for what a template writes around it, too.
    """
    if len(caption) <= most and sum(map(_cost, turns)) <= most:
        return tuple(turns), caption
    last = max((number for number, turn in enumerate(turns) if _markers(turn)), default=-1)
    kept, left = [], most
    for number, turn in enumerate(turns):
        if left <= 0 and number > last:
            break
        kept.append(_cut(turn, max(left, 0)))
        left -= _cost(turn)
    return tuple(kept), caption[:most]


def _cut(turn: Turn, most: int) -> Turn:
    if len(turn.text) <= most:
        return turn
    cut = dataclasses.replace(turn, text=turn.text[:most])
    lost = _markers(turn) - _markers(cut)
    return dataclasses.replace(cut, text=cut.text + IMAGE_MARKER * lost)


def _cost(turn: Turn) -> int:
    return len(turn.text) + _AROUND_TURN


def _markers(turn: Turn) -> int:
    """How many images a turn places; in an answer the marker is a word like any other."""
    return turn.text.count(IMAGE_MARKER) if turn.role == "human" else 0


def _check_markers(turns: Sequence[Turn], num_images: int) -> None:
    markers = sum(_markers(turn) for turn in turns)
    if markers not in (0, num_images):
        raise ValueError(
            f"expected {num_images} {IMAGE_MARKER} markers in the human turns, one per image (or "
            f"none), found {markers}"
        )


def _check_roles(turns: Sequence[Turn], dropped: int) -> None:
    if not turns:
        raise ValueError("expected a human turn, found none")
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "human"
        if turn.role != expected:
            raise ValueError(
                f"turn {number + dropped + 1}: expected the {expected}, found the {turn.role} "
                "again: the two must alternate"
            )
