r"""Writes a SentencePiece model as a `tokenizer.json` that gives the same ids.

Two kinds of Llama tokenizers share one `tokenizer.model` and differ in one flag of
`tokenizer_config.json`. `legacy: true` (the default where the flag is absent) begins every stretch
of text between special tokens with a space; `legacy: false`, as Vicuna 1.5 has it, begins only the
prompt with one. LLaVA tokenises what follows an image as a prompt of its own, so that here every
stretch after `<image>` begins with a space too.

    legacy      <s>▁USER : ▁<image>▁\n ... . </s>▁USER
    non-legacy  <s>▁USER : ▁<image>▁\n ... . </s>USER
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from astrollava_jax.data.example import IMAGE_MARKER

SPACE = "▁"
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # SentencePiece.Type


def tokenizer_json(model_bytes: bytes, tokenizer_config: dict[str, Any]) -> str:
    """The text of a `tokenizer.json` whose ids equal SentencePiece's.

    Args:
        model_bytes: the content of `tokenizer.model`.
        tokenizer_config: the content of `tokenizer_config.json`, or an empty dict. Read are
            `legacy`, `add_bos_token` and `added_tokens_decoder`.

    Raises:
        ValueError: if the model is none that Llama's family uses; names every difference.
    """
    model = _parse(model_bytes)
    legacy = tokenizer_config.get("legacy") is not False
    added = _added_tokens(model, tokenizer_config, legacy)
    bos = model.trainer_spec.bos_piece if tokenizer_config.get("add_bos_token", True) else None
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": _normalizer(legacy, (t["content"] for t in added if t["normalized"])),
            "pre_tokenizer": None,
            "post_processor": begin_with(bos, model.trainer_spec.bos_id) if bos else None,
            "decoder": _decoder(),
            "model": _bpe(model),
        },
        ensure_ascii=False,
    )


def special_literals(model_bytes: bytes) -> dict[str, str]:
    """The literals that the model itself names: `bos_token`, `eos_token` and `unk_token`."""
    spec = _parse(model_bytes).trainer_spec
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id}
    pieces = {
        "bos_token": spec.bos_piece,
        "eos_token": spec.eos_piece,
        "unk_token": spec.unk_piece,
    }
    return {name: pieces[name] for name, piece_id in ids.items() if piece_id >= 0}


def begin_with(literal: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts one token before every text."""
    special = {"SpecialToken": {"id": literal, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": literal, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {literal: {"id": literal, "ids": [token_id], "tokens": [literal]}},
    }


def added_token(token_id: int, literal: str, normalized: bool = False) -> dict[str, Any]:
    """The entry of one special token in `added_tokens`."""
    return {
        "id": token_id,
        "content": literal,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": True,
    }


def _parse(model_bytes: bytes) -> Any:
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(model_bytes)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise ValueError(
            "tokenizer.model: expected a SentencePiece model, found other bytes (Llama 3 keeps a "
            "tiktoken file under this name): save the tokenizer with transformers once, so that "
            "the folder holds a tokenizer.json"
        )
    faults = _faults(model)
    if faults:
        raise ValueError(
            "tokenizer.model: no tokenizer.json with equal ids can be made, because "
            + "; ".join(faults)
            + ". Put a tokenizer.json into the folder"
        )
    return model


def _faults(model: Any) -> list[str]:
    """What sets this model apart from those of Llama's family."""
    spec, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = {piece.type for piece in model.pieces}
    checks = {
        f"its type is {spec.model_type}, expected BPE ({_BPE})": spec.model_type != _BPE,
        "it has no byte fallback": not spec.byte_fallback,
        f"it normalises text ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "it adds no dummy prefix": not normalizer.add_dummy_prefix,
        "it removes extra spaces": normalizer.remove_extra_whitespaces,
        "it keeps spaces unescaped": not normalizer.escape_whitespaces,
        "it writes spaces after words": spec.treat_whitespace_as_suffix,
        "it has user-defined or unused pieces": bool(kinds & {_USER_DEFINED, _UNUSED}),
    }
    return [fault for fault, found in checks.items() if found]


def _bpe(model: Any) -> dict[str, Any]:
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.trainer_spec.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece.piece: index for index, piece in enumerate(model.pieces)},
        "merges": _merges(scores),
    }


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best third first.

    SentencePiece joins the pair with the best score, and of equals the leftmost. Among equal scores
    (runs of spaces share one) the longer left part comes first here: a run that has begun to grow
    from the left goes on growing, which is what leftmost means. Control pieces take no part, so
    that no text becomes one.
    """
    merges = [
        (score, cut, whole)
        for whole, score in scores.items()
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]
    merges.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(whole[:cut], whole[cut:]) for _, cut, whole in merges]


def _added_tokens(model: Any, config: dict[str, Any], legacy: bool) -> list[dict[str, Any]]:
    """The special pieces of the model and the tokens that the config adds, by id."""
    tokens: dict[int, dict[str, Any]] = {
        index: {"content": piece.piece}
        for index, piece in enumerate(model.pieces)
        if piece.type in (_UNKNOWN, _CONTROL)
    }
    tokens |= {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    found = []
    for token_id, token in sorted(tokens.items()):
        literal = token["content"]
        entry = added_token(token_id, literal, not legacy and literal != IMAGE_MARKER)
        swallows = {side: token[side] for side in ("lstrip", "rstrip") if side in token}
        found.append(entry | swallows)
    return found


def _normalizer(legacy: bool, inner: Iterable[str]) -> dict[str, Any]:
    """The prefix space, and spaces as `▁`.

    A text is first cut at the tokens that are not normalised; each stretch is then normalised, and
    only then cut at the others. Legacy cuts at all special tokens first, so that each stretch gets
    its own prefix. Non-legacy cuts at `<image>` alone first; a stretch that begins with another
    special token gets no prefix, like the slow tokenizer of transformers.
    """
    if legacy:
        prefix: dict[str, Any] = {"type": "Prepend", "prepend": SPACE}
    else:
        begins_special = "|".join(re.escape(literal) for literal in inner)
        pattern = {"Regex": rf"\A(?!{begins_special})"}
        prefix = {"type": "Replace", "pattern": pattern, "content": SPACE}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {"type": "Sequence", "normalizers": [prefix, spaces]}


def _decoder() -> dict[str, Any]:
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
