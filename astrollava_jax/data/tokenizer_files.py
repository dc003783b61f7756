"""What the files of a model's folder say about its tokenizer, and the same facts as files again."""

import dataclasses
import json
from typing import Any

from astrollava_jax import files
from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.data.sentencepiece_json import (
    added_token,
    special_literals,
    tokenizer_json,
)

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
PAD = "<pad>"
# What speaks of the old form of the tokenizer and no longer of its tokenizer.json.
_DROPPED = ("legacy", "sp_model_kwargs", "auto_map", "add_prefix_space", "backend", "is_local")


@dataclasses.dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer with `<image>` and a pad, however its folder spells it.

    `data` is the content of tokenizer.json, `literals` gives the special tokens by their names in
    transformers (`bos_token` ...), and `adds_bos` tells whether a text begins with `bos_token`.
    `extended` is False where the folder's own files say all of this, and so can be copied.
    """

    folder: str
    data: dict[str, Any]
    config: dict[str, Any]
    literals: dict[str, str]
    adds_bos: bool
    chat_template: str | None
    extended: bool


def read(folder: files.Where) -> TokenizerFacts:
    """Reads the tokenizer of any model's folder; adds `<image>` and a pad where they are missing.

    `<image>` takes the next free id and a new pad the one after it: 32000 and 32001 for Llama 2, as
    in llava-1.5-7b-hf. A pad is missing when neither the tokenizer's files name one nor `<pad>` is
    a token; a model's config that merely repeats the id of another special token names none.

    A `tokenizer.json` is taken as it stands; `tokenizer.model` is read only where there is none.

    Raises:
        FileNotFoundError: if the folder has neither file.
        ValueError: if no token ends a text, or a named token is none of the vocabulary.
    """
    config = _json(folder, "tokenizer_config.json")
    data, implied = _vocabulary(folder, config)
    declared = implied | _declared(folder, config)
    found = declared | _from_model_config(folder, data, declared)
    literals = {name: found[name] for name in NAMES if name in found}
    _check(folder, data, literals)
    found_data = data
    data, literals = with_image_and_pad(data, literals)
    return TokenizerFacts(
        folder=str(folder),
        data=data,
        config=config,
        literals=literals,
        adds_bos="bos_token" in literals and _adds_bos(config, data, literals["bos_token"]),
        chat_template=_chat_template(folder, config),
        extended=data != found_data or not files.exists(files.join(folder, "tokenizer.json")),
    )


def with_image_and_pad(
    data: dict[str, Any], literals: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A `tokenizer.json` with `<image>` and a pad; every named token in it is a special one."""
    pad = literals.get("pad_token", PAD)
    added = {token["content"]: token for token in data["added_tokens"]}
    ids = token_ids(data)
    for literal in (IMAGE_MARKER, pad, *literals.values()):
        token_id = ids.setdefault(literal, max(ids.values()) + 1)
        added[literal] = added.get(literal, added_token(token_id, literal)) | {"special": True}
    tokens = sorted(added.values(), key=lambda token: token["id"])
    return data | {"added_tokens": tokens}, literals | {"pad_token": pad}


def write(facts: TokenizerFacts) -> dict[str, bytes]:
    """The files that stock transformers loads: name to content."""
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in facts.data["added_tokens"]
    }
    kept = {key: value for key, value in facts.config.items() if key not in _DROPPED}
    config = kept | {
        # The class that takes tokenizer.json as it stands, in transformers 4 and 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "extra_special_tokens": {"image_token": IMAGE_MARKER},
        "image_token": IMAGE_MARKER,
        "processor_class": "LlavaProcessor",
        "padding_side": "left",
        "clean_up_tokenization_spaces": kept.get("clean_up_tokenization_spaces", False),
        **facts.literals,
    }
    contents = {
        "tokenizer.json": (facts.data, None),
        "tokenizer_config.json": (config, 2),
        "special_tokens_map.json": (facts.literals, 2),
    }
    return {
        name: (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()
        for name, (content, indent) in contents.items()
    }


def token_ids(data: dict[str, Any]) -> dict[str, int]:
    """Every token of a `tokenizer.json` and its id."""
    vocab = data["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        vocab = {piece: index for index, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in data["added_tokens"]}


def _json(folder: files.Where, name: str) -> dict[str, Any]:
    path = files.join(folder, name)
    return files.read_json_object(path) if files.exists(path) else {}


def _vocabulary(
    folder: files.Where, config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of tokenizer.json, made where it is not there, and the literals it implies."""
    if files.exists(files.join(folder, "tokenizer.json")):
        data = files.read_json_object(files.join(folder, "tokenizer.json"))
        if not isinstance(data.get("model"), dict):
            raise ValueError(f"{folder}/tokenizer.json: expected a model in it, found none")
        unknown = data["model"].get("unk_token")
        return data | {"truncation": None, "padding": None}, (
            {"unk_token": unknown} if unknown else {}
        )
    path = files.join(folder, "tokenizer.model")
    if not files.exists(path):
        raise FileNotFoundError(
            f"{folder}: expected tokenizer.json or tokenizer.model, found neither"
        )
    # added_tokens.json is how slow tokenizers kept their additions before tokenizer_config did.
    older = {
        str(token_id): {"content": literal}
        for literal, token_id in _json(folder, "added_tokens.json").items()
    }
    newer = config.get("added_tokens_decoder", {})
    content = files.read_bytes(path)
    try:
        text = tokenizer_json(content, config | {"added_tokens_decoder": older | newer})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return json.loads(text), special_literals(content)


def _declared(folder: files.Where, config: dict[str, Any]) -> dict[str, str]:
    """The special tokens that the tokenizer's own files name."""
    older = _json(folder, "special_tokens_map.json")
    values = {name: config.get(name) or older.get(name) for name in NAMES}
    return {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in values.items()
        if value
    }


def _from_model_config(
    folder: files.Where, data: dict[str, Any], declared: dict[str, str]
) -> dict[str, str]:
    """The special tokens that only the model's config names, by their ids."""
    literal_of = {token_id: literal for literal, token_id in token_ids(data).items()}
    config = _json(folder, "config.json")
    sources = (config.get("text_config", {}), config, _json(folder, "generation_config.json"))
    found: dict[str, str] = {}
    for source in sources:
        for name in NAMES:
            token_id = source.get(f"{name}_id")
            token_id = token_id[0] if isinstance(token_id, list) else token_id
            if name not in declared and token_id in literal_of:
                found[name] = literal_of[token_id]
    # Many configs carry the id of <unk> or EOS as a pad that nobody chose (Vicuna's says 0).
    others = {text for name, text in (declared | found).items() if name != "pad_token"}
    return {name: text for name, text in found.items() if name != "pad_token" or text not in others}


def _check(folder: files.Where, data: dict[str, Any], literals: dict[str, str]) -> None:
    """A text must be able to end, and a token that is named must be there (a pad can be added)."""
    ids = token_ids(data)
    wanted = {"eos_token": None} | literals
    faults = [
        f"{name} {literal!r}"
        for name, literal in wanted.items()
        if name != "pad_token" and literal not in ids
    ]
    if faults:
        raise ValueError(
            f"{folder}: expected a tokenizer with an eos_token, and with every special token that "
            f"its files name, found no {', no '.join(faults)}: correct tokenizer_config.json"
        )


def _adds_bos(config: dict[str, Any], data: dict[str, Any], bos: str) -> bool:
    """Whether a text begins with the BOS token: the config's word, else the post-processor's."""
    declared = config.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    processor = data.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    begins = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing"]
    return any(first.get("SpecialToken", {}).get("id") == bos for first in begins)


def _chat_template(folder: files.Where, config: dict[str, Any]) -> str | None:
    """The model's own chat template, from whichever of its places holds one."""
    path = files.join(folder, "chat_template.jinja")
    if files.exists(path):
        return files.read_text(path)
    found = _json(folder, "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found
