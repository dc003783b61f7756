"""The small tokenizer of the simulated sky: one token per word, for the sky's own words.

Text is lower-cased and split into words, punctuation and newlines; any other word becomes `<unk>`.
The files are those of a Hugging Face model directory.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.quickstart.words import lexicon

UNKNOWN, BEGIN, END, PADDING = "<unk>", "<s>", "</s>", "<pad>"
SPECIALS = (UNKNOWN, BEGIN, END, PADDING, IMAGE_MARKER)
PUNCTUATION = (".", ",", "?", ":", "\n")
ROLES = ("user", "assistant")
MAX_LENGTH = 2048  # positions; the longest dialogue takes some hundred

# `<s>user: question assistant: answer</s>user: ...`: a dialogue begins as any longer one does.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'assistant') -%}
{{- raise_exception('expected the roles user and assistant, found ' + message['role']) -}}
{%- endif -%}
{{- message['role'] + ': ' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- ' ' if message['role'] == 'user' else eos_token -}}
{%- endfor -%}
{{- 'assistant:' if add_generation_prompt -}}
"""


def words() -> list[str]:
    """The vocabulary in the order of its ids."""
    return [*SPECIALS, *PUNCTUATION, *sorted({*ROLES, *lexicon()})]


def tokenizer_files() -> dict[str, bytes]:
    """The files that a model directory holds about its tokenizer, by name."""
    named = {
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PADDING,
    }
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [IMAGE_MARKER],
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "right",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": _tokenizer().to_str(pretty=True).encode("utf-8"),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json({**named, "additional_special_tokens": [IMAGE_MARKER]}),
        "chat_template.jinja": CHAT_TEMPLATE.encode("utf-8"),
    }


def _tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    # What does not match (spaces) is removed; what matches stands alone.
    piece = Regex(r"\n|\w+(?:-\w+)*|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(piece, behavior="removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A $B",
        special_tokens=[(BEGIN, vocabulary[BEGIN])],
    )
    tokenizer.decoder = _decoder()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return tokenizer


def _decoder() -> decoders.Decoder:
    """Puts one space between words, none before punctuation nor around newlines."""
    tight = [decoders.Replace(f" {mark}", mark) for mark in PUNCTUATION]
    spaced = decoders.WordPiece(prefix="##", cleanup=False)
    return decoders.Sequence([spaced, *tight, decoders.Fuse(), decoders.Replace("\n ", "\n")])


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode("utf-8")
