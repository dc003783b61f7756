"""A sample of a batch as a person reads it: special tokens visible, what is learned marked."""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int32
from rich.text import Text

from astrollava_jax.batch import TEXT, Batch
from astrollava_jax.data.faults import visible
from astrollava_jax.data.tokenizer import Tokenizer

OPEN, CLOSE = "«", "»"
"""Around what is learned: seen where there are no colours, too."""

NEW_LINE = "↵"
STYLE = "underline green"

Piece = tuple[str, bool]
"""A stretch of text, and whether it is learned."""

_LINES = re.compile(r"([\n\t])")


def sample_text(
    batch: Batch, row: int, segment: int, tokenizer: Tokenizer, image_tokens: int
) -> Text:
    """One sample in words.

        <s><image x576>↵
        «a ring nebula.↵»

    Args:
        batch: with the sample,
        row: in this row,
        segment: under this number.
        tokenizer: made its ids.
        image_tokens: features of an image.
    """
    places = np.flatnonzero(batch.segment_ids[row] == segment)
    index = batch.learned_index[row]
    # The loss at a position is on the token after it.
    learned = np.isin(places, index[index >= 0] + 1)
    features = batch.feature_index[row, places]
    numbers = np.cumsum(_begins_picture(features, image_tokens))
    ids = np.where(features == TEXT, batch.tokens[row, places], -numbers)
    pieces = _pieces(ids.tolist(), learned.tolist(), tokenizer)
    text = Text()
    for marked, group in itertools.groupby(pieces, key=lambda piece: piece[1]):
        content = _shown("".join(content for content, _ in group))
        content = content.replace("\n", f"{NEW_LINE}\n")
        if not marked:
            text.append(content)
            continue
        body = content.removesuffix("\n")
        text.append(OPEN + body + CLOSE, style=STYLE)
        text.append(content[len(body) :])
    text.rstrip()
    return text


def _shown(content: str) -> str:
    """Text of a record, which may hold what would move a terminal's cursor or turn its lines."""
    parts = _LINES.split(content)
    return "".join(p if _LINES.match(p) else visible(p, len(p)) for p in parts)


def _begins_picture(features: Int32[np.ndarray, "T"], image_tokens: int) -> Bool[np.ndarray, "T"]:
    """Where pictures begin: there the features of a whole image follow each other.

    Of tiles only a line follows, before the next tile's line or a newline.
    """
    begins = (features >= 0) & (features % image_tokens == 0)
    for place in np.flatnonzero(begins):
        run = features[place : place + image_tokens] - features[place]
        begins[place] = np.array_equal(run, np.arange(image_tokens))
    return begins


def _pieces(ids: Sequence[int], learned: Sequence[bool], tokenizer: Tokenizer) -> Iterator[Piece]:
    """The stretches of a sample; an id below 0 stands at the positions of one picture."""
    literals = {token_id: literal for literal, token_id in tokenizer.special_ids.items()}
    tokens = zip(ids, learned)
    for shown, group in itertools.groupby(tokens, key=lambda t: t[0] < 0 or t[0] in literals):
        group = list(group)
        if not shown:
            yield from _text_pieces(group, tokenizer)
            continue
        for token_id, run in itertools.groupby(group):
            count = len(list(run))
            if token_id[0] < 0:
                yield f"<image x{count}>", False
            else:
                yield literals[token_id[0]] * count, token_id[1]


def _text_pieces(tokens: Sequence[tuple[int, bool]], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Ordinary tokens as text, cut where learning begins or ends.

    A part decoded alone would lose the space before it, so that the whole is decoded and cut.
    """
    ids = [token_id for token_id, _ in tokens]
    whole, start, count = tokenizer.decode(ids), 0, 0
    for learned, group in itertools.groupby(tokens, key=lambda token: token[1]):
        count += len(list(group))
        stop = len(whole) if count == len(ids) else len(tokenizer.decode(ids[:count]))
        yield whole[start:stop], learned
        start = stop
