"""Tokenizer: text to ids with their places in the text, and ids to text.

Text is always text here: a literal such as `</s>` or `<image>` in it gets the ids of an ordinary
word. Special tokens are put between texts by their ids (see `chat.py`).
"""

import copy
import functools
import hashlib
import json
import re
from typing import Any

import tokenizers

from astrollava_jax import files
from astrollava_jax.data import tokenizer_files
from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.data.sentencepiece_json import SPACE
from astrollava_jax.data.tokenizer_files import TokenizerFacts

Span = tuple[int, int]


class Tokenizer:
    """The tokenizer of a model's folder, with `<image>` and a pad.

    It travels to worker processes; the Rust objects are made there when they are first used.

    Attributes:
        folder: where it was read.
        bos_id: the token that begins a text, or None.
        eos_id: the token that ends an answer.
        pad_id: fills rows; it may be another special token too, so no mask is made from it.
        image_id: stands for one image.
        adds_bos: whether every text of this model begins with `bos_id`.
        special_ids: literal to id, of all special and added tokens.
        special_pattern: finds the special tokens in a prompt written by a template, each with the
            space around it that it swallows.
        literals: the special tokens by their names in transformers (`bos_token` ...).
        vocab_size: the highest id + 1.
        chat_template: the model's own (Jinja), or None.
        extended: whether `files` says more than the folder's own files do.
    """

    def __init__(self, facts: TokenizerFacts):
        ids = tokenizer_files.token_ids(facts.data)
        self.folder = facts.folder
        self.literals = facts.literals
        self.bos_id: int | None = ids.get(facts.literals.get("bos_token", ""))
        self.eos_id: int = ids[facts.literals["eos_token"]]
        self.pad_id: int = ids[facts.literals["pad_token"]]
        self.image_id: int = ids[IMAGE_MARKER]
        self.adds_bos: bool = facts.adds_bos  # implies a bos_id
        self.special_ids = {t["content"]: t["id"] for t in facts.data["added_tokens"]}
        self.special_pattern = _pattern(facts.data["added_tokens"])
        self.vocab_size = max(ids.values()) + 1
        self.chat_template = facts.chat_template
        self.extended = facts.extended
        self._unknown_id: int | None = ids.get(facts.data["model"].get("unk_token"))
        self._never_text = {t["id"] for t in facts.data["added_tokens"] if t["special"]}
        self._never_text.discard(self._unknown_id)
        self._files = tokenizer_files.write(facts)
        self._first_json = _json_unless(_as_text(facts.data, first=True), facts.data)
        self._rest_json = _json_unless(_as_text(facts.data, first=False), facts.data)
        self._check_ids(facts)

    @classmethod
    def from_folder(cls, folder: files.Where) -> "Tokenizer":
        """Reads any model's folder; see `tokenizer_files.read`."""
        return cls(tokenizer_files.read(folder))

    def encode(self, text: str, *, first: bool = True) -> tuple[list[int], list[Span]]:
        """The ids of a text, without BOS or EOS, and the characters that each stands for.

            encode("A barred  spiral")   ids    319  2594  1127  29871  6337  284
                                         spans  0:1  1:5   5:8   8:9    9:14  14:16

        Bytes of one character have the same span; a space that the tokenizer puts before the text
        has the span of its first character.

        Args:
            text: any text; special tokens in it are ordinary words.
            first: False where the text follows a special token within the same prompt, and so
                gets no space before it (only non-legacy SentencePiece makes the difference).

        Raises:
            ValueError: if the vocabulary can write a part of the text only as a special token.
        """
        encoding = self._encoding(text, first)
        spans = [(start, max(end, start + 1)) for start, end in encoding.offsets]
        return self._ordinary_ids(encoding), spans

    def ids(self, text: str, *, first: bool = True) -> list[int]:
        """The ids that `encode` gives."""
        return self._ordinary_ids(self._encoding(text, first))

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids that stock transformers gives to a prompt: literals in it are special tokens."""
        ids = self._whole.encode(prompt, add_special_tokens=False).ids
        return [self.bos_id, *ids] if self.adds_bos and self.bos_id is not None else ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special tokens are left out."""
        return self._whole.decode(ids, skip_special_tokens=True)

    def special_id(self, text: str) -> int:
        """The id of a special or added token.

        Raises:
            ValueError: if `text` is none; lists those there are.
        """
        if text not in self.special_ids:
            some = ", ".join(list(self.special_ids)[:20])
            raise ValueError(
                f"{self.folder}: expected the token {text} in the tokenizer, found {some}"
            )
        return self.special_ids[text]

    def ids_ending_with(self, text: str) -> tuple[int, ...]:
        """The ids of all ordinary tokens whose text ends with `text`."""
        ids = [i for i in range(self.vocab_size) if i not in self._never_text]
        decoded = self._whole.decode_batch([[i] for i in ids], skip_special_tokens=True)
        return tuple(i for i, word in zip(ids, decoded) if word.endswith(text))

    def files(self) -> dict[str, bytes]:
        """What stock transformers loads: file name to content."""
        return dict(self._files)

    def fingerprint(self) -> str:
        """A digest that is equal exactly where all ids are."""
        digest = hashlib.sha256(self._files["tokenizer.json"])
        facts = (self.bos_id, self.eos_id, self.pad_id, self.image_id, self.adds_bos)
        digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    @functools.cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._files["tokenizer.json"].decode())

    @functools.cached_property
    def _first(self) -> tokenizers.Tokenizer:
        return _rust(self._first_json or self._files["tokenizer.json"].decode())

    @functools.cached_property
    def _rest(self) -> tokenizers.Tokenizer:
        if self._rest_json == self._first_json:
            return self._first
        return _rust(self._rest_json or self._files["tokenizer.json"].decode())

    def _encoding(self, text: str, first: bool) -> tokenizers.Encoding:
        return (self._first if first else self._rest).encode(text, add_special_tokens=False)

    def _ordinary_ids(self, encoding: tokenizers.Encoding) -> list[int]:
        ids = encoding.ids
        if self._never_text.isdisjoint(ids):
            return ids
        return [self._ordinary(token_id) for token_id in ids]

    def _ordinary(self, token_id: int) -> int:
        """An id for text: a word that is a special token is an unknown word."""
        if token_id not in self._never_text:
            return token_id
        if self._unknown_id is None:
            literal = self._whole.id_to_token(token_id)
            raise ValueError(
                f"{self.folder}: the text holds {literal}, which this vocabulary can write only as "
                "a special token: take it out of the text"
            )
        return self._unknown_id

    def _check_ids(self, facts: TokenizerFacts) -> None:
        found = {literal: self._whole.token_to_id(literal) for literal in self.special_ids}
        wrong = {text: i for text, i in self.special_ids.items() if found[text] != i}
        if wrong:
            raise ValueError(
                f"{self.folder}: expected added tokens to follow the vocabulary without a gap, "
                f"found {wrong}, which would become { {text: found[text] for text in wrong} }"
            )

    def __getstate__(self) -> dict[str, Any]:
        made = ("_whole", "_first", "_rest")
        return {name: value for name, value in self.__dict__.items() if name not in made}


def _pattern(added_tokens: list[dict[str, Any]]) -> re.Pattern[str]:
    special = [token for token in added_tokens if token["special"]]
    special.sort(key=lambda token: -len(token["content"]))
    space = {True: r"\s*", False: ""}
    return re.compile(
        "|".join(
            space[token["lstrip"]] + re.escape(token["content"]) + space[token["rstrip"]]
            for token in special
        )
    )


def _rust(text: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # their literals are text
    return tokenizer


def _json_unless(data: dict[str, Any], same_as: dict[str, Any]) -> str | None:
    return None if data == same_as else json.dumps(data)


def _as_text(data: dict[str, Any], first: bool) -> dict[str, Any]:
    """A `tokenizer.json` for one stretch of text: the first of a prompt, or a later one.

    Two forms give a space to the first stretch only: the one that `sentencepiece_json` writes, and
    transformers' `Metaspace` with the scheme `first`. In all others every stretch is like it.
    """
    changing = {"normalizer", "pre_tokenizer"}
    data = data | {key: copy.deepcopy(data[key]) for key in changing & data.keys()}
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [])
    if steps and str(steps[0].get("pattern", {}).get("Regex", "")).startswith(r"\A(?!"):
        prefix = [{"type": "Prepend", "prepend": SPACE}] if first else []
        normalizer["normalizers"] = prefix + steps[1:]
    splitter = data.get("pre_tokenizer") or {}
    for step in splitter.get("pretokenizers", [splitter]):
        if step.get("prepend_scheme") == "first" and not first:
            step["prepend_scheme"] = "never"
    return data
