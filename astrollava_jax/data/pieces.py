"""Pieces of a prompt, and the token ids and the loss mask made of them together.

A piece is a stretch of text or one token's id, and is learned or not. Which tokens are learned
follows from the characters they stand for; no length is ever counted.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int32

from astrollava_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text, or the id of a special token."""

    content: str | int
    learned: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the content is text."""
        return isinstance(self.content, str)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A sample as token ids; each image stands as one `image_id`. True in `learned`: has loss."""

    tokens: Int32[np.ndarray, " n"]
    learned: Bool[np.ndarray, " n"]


def assemble(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Rendered:
    """Tokenises pieces; a token is learned if any of its characters is.

        pieces   " ASSISTANT:" | " A spiral." (learned) | 2 (learned)
        tokens   ▁A SS IST ANT :  ▁A ▁spiral .  </s>
        learned  .  .  .   .   .  #  #       #  #

    Neighbouring texts are tokenised as one, so that learning a stretch changes no id. As in LLaVA,
    what follows an image is tokenised like the beginning of a text. BOS comes first where the
    tokenizer adds it, and is not doubled where a template writes it.
    """
    tokens: list[int] = []
    learned: list[bool] = []
    first = True
    for is_text, group in itertools.groupby(pieces, key=lambda piece: piece.is_text):
        group = list(group)
        if is_text:
            ids, mask = _tokenize(group, tokenizer, first)
        else:
            ids = [int(piece.content) for piece in group]
            mask = [piece.learned for piece in group]
            first = ids[-1] == tokenizer.image_id
        tokens += ids
        learned += mask
    bos = tokenizer.bos_id if tokenizer.adds_bos else None
    if bos is not None and tokens[:1] != [bos]:
        tokens, learned = [bos, *tokens], [False, *learned]
    # Nothing stands before the first token that could foretell it.
    learned[:1] = [False] * len(learned[:1])
    return Rendered(np.array(tokens, np.int32), np.array(learned, bool))


def _tokenize(
    texts: Sequence[Piece], tokenizer: Tokenizer, first: bool
) -> tuple[list[int], list[bool]]:
    text = "".join(str(piece.content) for piece in texts)
    if len({piece.learned for piece in texts}) == 1:  # then it does not matter which is whose
        ids = tokenizer.ids(text, first=first)
        return ids, [texts[0].learned] * len(ids)
    ids, spans = tokenizer.encode(text, first=first)
    flags = [piece.learned for piece in texts for _ in str(piece.content)]
    before = [0, *itertools.accumulate(flags)]  # learned characters before each place
    return ids, [before[end] > before[start] for start, end in spans]
