"""LLaVA's own way from a dialogue to ids and labels, restated over the sentencepiece library.

Everything is text here: a dialogue is written as one string, cut at separators, and its pieces are
tokenised again to count how many tokens to leave out. It shares no code with the package.
"""

import dataclasses
import functools
import io
import os
import re
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

TOKENIZERS = os.environ.get("ASTROLLAVA_TEST_TOKENIZERS")
needs_tokenizers = pytest.mark.skipif(
    not TOKENIZERS, reason="ASTROLLAVA_TEST_TOKENIZERS names no folder with real tokenizers"
)
IGNORED, IMAGE = -100, -200


def model_bytes(name):
    """A model by its file's name in the folder of real ones, or the `small` one."""
    if name == "small":
        return small_model()
    return (Path(TOKENIZERS) / name).read_bytes()


@functools.cache
def small_model():
    """A SentencePiece model of Llama's kind, trained on a few sentences."""
    sentences = [
        USER,
        "USER: What is this? ASSISTANT: This is a barred spiral galaxy with two blue arms.",
        "USER: How many arms has the galaxy? ASSISTANT: It has 2 arms.",
        "[INST] Is it an elliptical galaxy, seen from the side? [/INST] No, a ring of stars.",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=model,
        vocab_size=430,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def without_dummy_prefix(content):
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    model.normalizer_spec.add_dummy_prefix = False
    return model.SerializeToString()


class SlowLlama:
    """The slow LlamaTokenizer of transformers 4.37, legacy or not."""

    def __init__(self, content, legacy, added=None):
        self.legacy = legacy
        self.specials = {"<unk>": 0, "<s>": 1, "</s>": 2} | (added or {})
        content = content if legacy else without_dummy_prefix(content)
        self.model = sentencepiece.SentencePieceProcessor(model_proto=content)

    def first_stretch(self, text):
        """The beginning of a prompt, in which special tokens are words."""
        return self.stretch(text if self.legacy or not text else "▁" + text)

    def stretch(self, text):
        """What follows a special token."""
        if self.legacy or not text.startswith(("▁", " ")):
            return self.model.encode(text)
        # Without a dummy prefix the library loses leading spaces: shield them, then cut the shield.
        return self.model.encode("<unk>" + text)[len(self.model.encode("<unk>")) :]

    def __call__(self, text):
        if not self.legacy and text:
            text = "▁" + text.replace("▁", " ")
        literals = "|".join(re.escape(literal) for literal in self.specials)
        parts = [part for part in re.split(f"({literals})", text) if part]
        if not self.legacy and len(parts) > 1 and parts[0] == "▁" and parts[1] in self.specials:
            parts = parts[1:]
        ids = [1]
        for part in parts:
            ids += [self.specials[part]] if part in self.specials else self.stretch(part)
        return ids

    def with_images(self, text):
        """Chunks between image markers are tokenised one by one; the first keeps its BOS."""
        first, *rest = [self(chunk) for chunk in text.split("<image>")]
        for ids in rest:
            first = [*first, IMAGE, *ids[1:]]
        return first


@dataclasses.dataclass
class Style:
    """One of LLaVA's conversations."""

    kind: str
    system: str
    sep: str
    sep2: str = ""


USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
STYLES = {
    "vicuna_v1": Style("two", USER, " ", "</s>"),
    "llava_v1": Style("two", USER.replace("user", "human"), " ", "</s>"),
    "llama_2": Style("llama", LLAMA_2, "<s>", "</s>"),
    "mistral_instruct": Style("llama", "", "", "</s>"),
    "chatml": Style("mpt", "<|im_start|>system\nAnswer the questions.", "<|im_end|>"),
}


def written(style, texts):
    """A dialogue as one string; texts alternate between the human and the assistant."""
    if style.kind == "two":
        roles, ends = ("USER", "ASSISTANT"), (style.sep, style.sep2)
        turns = [f"{roles[i % 2]}: {text}{ends[i % 2]}" for i, text in enumerate(texts)]
        return style.system + style.sep + "".join(turns)
    if style.kind == "mpt":
        roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
        turns = [roles[i % 2] + text + style.sep for i, text in enumerate(texts)]
        return style.system + style.sep + "".join(turns)
    prompt = ""
    for i, text in enumerate(texts):
        if i == 0 and style.system:
            text = f"<<SYS>>\n{style.system}\n<</SYS>>\n\n{text}"
        prompt += f" {text} {style.sep2}" if i % 2 else f"{style.sep}[INST] {text} [/INST]"
    return prompt.removeprefix(style.sep)


def sample(style, texts, tokenizer, mpt_start=0):
    """Ids and labels of a dialogue, by counting; where the count does not fit, all is ignored.

    `mpt_start` is where the count begins with MPT's style: at 0 in LLaVA, mended to 1 by its users.
    """
    prompt = written(style, texts)
    ids = tokenizer.with_images(prompt)
    if style.kind == "mpt":
        labels, reached = counted_mpt(style, prompt, ids, tokenizer, mpt_start)
    else:
        labels, reached = counted_rounds(style, prompt, ids, tokenizer)
    return ids, labels if reached == len(ids) else [IGNORED] * len(ids)


def counted_rounds(style, prompt, ids, tokenizer):
    separator = {"two": " ASSISTANT: ", "llama": "[/INST] "}[style.kind]
    labels, place = [IGNORED, *ids[1:]], 1
    for number, text in enumerate(prompt.split("</s>")):
        parts = text.split(separator)
        if not text or len(parts) != 2:
            break
        length = len(tokenizer.with_images(text))
        instruction = len(tokenizer.with_images(parts[0] + separator)) - 2
        if style.kind == "two" and number and not tokenizer.legacy:
            length, instruction = length - 1, instruction - 1
        labels[place : place + instruction] = [IGNORED] * instruction
        place += length
    return labels[:place] + [IGNORED] * (len(ids) - place), place


def counted_mpt(style, prompt, ids, tokenizer, place):
    pieces = prompt.split(style.sep)
    rounds = [style.sep.join(pieces[:3])]
    rounds += [style.sep.join(pieces[i : i + 2]) for i in range(3, len(pieces), 2)]
    separator = style.sep + "<|im_start|>assistant\n"
    labels = [IGNORED] * place + ids[place:]
    for number, text in enumerate(rounds):
        parts = text.split(separator)
        if not text or len(parts) != 2:
            break
        length = len(tokenizer.with_images(text))
        instruction = len(tokenizer.with_images(parts[0] + separator)) - 1
        if number and tokenizer.legacy:
            length, instruction = length + 1, instruction + 1
        labels[place : place + instruction] = [IGNORED] * instruction
        place += length
    return labels[:place] + [IGNORED] * (len(ids) - place), place


def plain(caption, tokenizer):
    """The image, the caption and a newline; BOS and image are ignored."""
    ids = tokenizer.with_images(f"<image>{caption}\n")
    return ids, [IGNORED, IGNORED, *ids[2:]]
