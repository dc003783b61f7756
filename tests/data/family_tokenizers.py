"""Folders with tokenizers of the families of decoders: their kind, special tokens and templates.

The words are few, trained here on a few sentences; Llama's 3, Llama's 2 and Mistral's are real
where there are real ones.
"""

import base64
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_words
from chat_templates import GEMMA_2, LLAMA_3, MISTRAL_1, MISTRAL_3, PHI_3, QWEN2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

SENTENCES = [
    "What is this? This is a barred spiral galaxy with two blue arms.",
    "system user assistant model You are a helpful assistant. How many arms has the galaxy?",
]
RANKS = 10_000
"""So many words of Llama 3 are taken: a beginning of its list is a vocabulary too."""


@dataclasses.dataclass(frozen=True)
class FamilyTokenizer:
    """What a family's folder says.

    Attributes:
        words: the content of `tokenizer.json`, or of `tokenizer.model` as bytes.
        config: of `tokenizer_config.json`.
        answer_ends: the token that ends an answer, in its template.
    """

    words: Callable[[], dict[str, Any] | bytes]
    config: dict[str, Any]
    answer_ends: str

    def write(self, folder: Path) -> Path:
        """The folder, as it is published."""
        folder.mkdir(parents=True, exist_ok=True)
        words = self.words()
        if isinstance(words, bytes):
            (folder / "tokenizer.model").write_bytes(words)
        else:
            (folder / "tokenizer.json").write_text(json.dumps(words))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config))
        return folder


def llama_3_ranks() -> dict[bytes, int]:
    """The first words of Llama 3 and their ranks."""
    lines = llava_words.model_bytes("llama3.tiktoken").splitlines()[:RANKS]
    pairs = (line.split() for line in lines)
    return {base64.b64decode(word): int(rank) for word, rank in pairs}


class Ranks(TikTokenConverter):
    """transformers' way from ranks to merges, without the library that it reads them with."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """The ranks."""
        return llama_3_ranks()


PHI_3_SPECIAL = ["<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in (1, 2, 3, 4)),
                 "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>",
                 "<|user|>"]  # fmt: skip
LLAMA_3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                   "<|end_header_id|>", "<|eot_id|>"]  # fmt: skip


@functools.cache
def llama_3_words() -> dict[str, Any]:
    """Bytes joined by rank; a text begins with BOS."""
    if llava_words.TOKENIZERS:
        rust = Ranks("", extra_special_tokens=LLAMA_3_SPECIAL).converted()
    else:
        rust = _bytes(LLAMA_3_SPECIAL)
    begin = processors.TemplateProcessing(
        single=f"{LLAMA_3_SPECIAL[0]} $A",
        pair=f"{LLAMA_3_SPECIAL[0]} $A $B",
        special_tokens=[(LLAMA_3_SPECIAL[0], rust.token_to_id(LLAMA_3_SPECIAL[0]))],
    )
    rust.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return json.loads(rust.to_str())


@functools.cache
def qwen2_words() -> dict[str, Any]:
    """Bytes; nothing begins a text, and nothing is unknown."""
    rust = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    rust.normalizer = normalizers.NFC()
    return json.loads(rust.to_str())


def _bytes(special: list[str]) -> Tokenizer:
    rust = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    rust.decoder = decoders.ByteLevel()
    rust.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=plain.alphabet(), show_progress=False
    )
    rust.train_from_iterator(SENTENCES * 3, trainer)
    rust.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return rust


@functools.cache
def gemma_2_words() -> dict[str, Any]:
    """SentencePiece's pieces with bytes for the rest; no space before a text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = sorted({letter for text in SENTENCES for letter in text.replace(" ", "▁")} | {"\n"})
    pairs = [("▁", "a"), ("i", "s"), ("▁", "is"), ("a", "r")]
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += [left + right for left, right in pairs]
    rust = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)}, merges=pairs,
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    rust.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    marks = ["<start_of_turn>", "<end_of_turn>"]
    rust.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in special + marks]
    )
    return json.loads(rust.to_str())


@functools.cache
def phi_3_words() -> dict[str, Any]:
    """Llama 2's words; the tokens of turns come behind them and swallow the space that follows."""
    model = llava_words.model_bytes("llama2.model" if llava_words.TOKENIZERS else "small")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(model)
        words = json.loads(LlamaTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    prefix = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    words["normalizer"] = {"type": "Sequence", "normalizers": [prefix, spaces]}
    words["pre_tokenizer"] = None
    rust = Tokenizer.from_str(json.dumps(words))
    rust.add_special_tokens(
        [
            AddedToken(text, rstrip=text != "<|endoftext|>", normalized=False, special=True)
            for text in PHI_3_SPECIAL
        ]
    )
    return json.loads(rust.to_str())


def mistral_words(version: int) -> bytes:
    """Mistral's words: version 3 has tokens for the marks of an instruction."""
    name = {1: "mistral-v1.model", 3: "mistral-v3.model"}[version]
    return llava_words.model_bytes(name if llava_words.TOKENIZERS else "small")


_FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
          "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}  # fmt: skip

FAMILIES = {
    "qwen2": FamilyTokenizer(qwen2_words, {
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "unk_token": None, "add_prefix_space": False, "chat_template": QWEN2, **_FAST,
    }, "<|im_end|>"),
    "llama 3": FamilyTokenizer(llama_3_words, {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA_3,
        **_FAST,
    }, "<|eot_id|>"),
    "gemma 2": FamilyTokenizer(gemma_2_words, {
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "add_bos_token": True, "chat_template": GEMMA_2, **_FAST,
    }, "<end_of_turn>"),
    "phi 3": FamilyTokenizer(phi_3_words, _LLAMA | {
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_bos_token": False,
        "legacy": False, "chat_template": PHI_3, **_FAST,
    }, "<|end|>"),
    "mistral 0.1": FamilyTokenizer(functools.partial(mistral_words, 1), _LLAMA | {
        "legacy": True, "chat_template": MISTRAL_1,
    }, "</s>"),
    "mistral 0.3": FamilyTokenizer(functools.partial(mistral_words, 3), _LLAMA | {
        "legacy": False, "chat_template": MISTRAL_3,
    }, "</s>"),
}  # fmt: skip
