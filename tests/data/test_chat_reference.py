"""Ids and masks of dialogues, against LLaVA's algorithm over sentencepiece, and Meta's format."""

import json

import llava_words
import pytest
from dialogues import DIALOGUES, LLAVA, labels_of, learned_text, render, turns_of
from llava_words import IGNORED

from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.tokenizer import Tokenizer

REAL = pytest.param("llama2.model", marks=llava_words.needs_tokenizers)


def ours(ids, tokenizer):
    return [tokenizer.image_id if i == llava_words.IMAGE else i for i in ids]


@pytest.mark.parametrize("template", LLAVA)
@pytest.mark.parametrize("name", ["small", REAL])
def test_ids_and_mask_are_llavas(make, name, template):
    tokenizer, slow = make(name, True)
    for texts in DIALOGUES:
        ids, labels = llava_words.sample(llava_words.STYLES[template], texts, slow)
        rendered = render(texts, template, tokenizer)
        assert set(labels) != {IGNORED}
        assert rendered.tokens.tolist() == ours(ids, tokenizer)
        assert labels_of(rendered) == labels


@llava_words.needs_tokenizers
@pytest.mark.parametrize("template", LLAVA)
def test_ids_and_mask_are_llavas_for_vicuna_itself(make, template):
    """Vicuna's tokenizer is non-legacy, and LLaVA's correction by one was made for it."""
    tokenizer, slow = make("llama2.model", False)
    for texts in DIALOGUES:
        ids, labels = llava_words.sample(llava_words.STYLES[template], texts, slow)
        rendered = render(texts, template, tokenizer)
        assert rendered.tokens.tolist() == ours(ids, tokenizer)
        assert labels_of(rendered) == labels


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["small", REAL])
def test_plain_is_llavas(make, name, legacy):
    tokenizer, slow = make(name, legacy)
    for caption in ["A barred spiral.", " 2 arms,  blue", "\U0001f30c"]:
        ids, labels = llava_words.plain(caption, slow)
        rendered = render(["<image>\nWhat?", "An answer."], "plain", tokenizer, caption)
        assert rendered.tokens.tolist() == ours(ids, tokenizer)
        assert labels_of(rendered) == labels
    answered = render(["<image>\nWhat?", "An answer."], "plain", tokenizer)
    assert answered.tokens.tolist() == ours(llava_words.plain("An answer.", slow)[0], tokenizer)


def test_several_turns_with_a_non_legacy_tokenizer_are_learned(make):
    """LLaVA's correction is made for one vocabulary; nothing is counted here.

    It subtracts one from every later round, because Vicuna's `USER` is one token after `</s>` and
    two at the start of a text. In this vocabulary it is two and one: LLaVA's count misses the end,
    and it ignores the whole sample.
    """
    tokenizer, slow = make("small", False)
    texts = DIALOGUES[2]
    ids, labels = llava_words.sample(llava_words.STYLES["vicuna_v1"], texts, slow)
    assert set(labels) == {IGNORED}
    rendered = render(texts, "vicuna_v1", tokenizer)
    assert rendered.tokens.tolist() == ours(ids, tokenizer)
    assert learned_text(rendered, tokenizer) == " ".join(texts[1::2])


def chatml_labels(ids, slow):
    """What follows each opening of an answer, up to and with `<|im_end|>`."""
    begin, end = slow.specials["<|im_start|>"], slow.specials["<|im_end|>"]
    header = [begin, *slow.stretch("assistant\n")]
    labels = [IGNORED] * len(ids)
    for place in range(len(ids)):
        if ids[place : place + len(header)] == header:
            start, stop = place + len(header), ids.index(end, place) + 1
            labels[start:stop] = ids[start:stop]
    return labels


@pytest.mark.parametrize("name", ["small", REAL])
@pytest.mark.parametrize("legacy", [True, False])
def test_chatml_is_learned(make, name, legacy):
    """LLaVA begins to count at 0 here, misses the end by one, and ignores the sample.

    With two questions and a legacy tokenizer, which it corrects by one too much, the errors cancel
    in the sum: it then learns the token before the first answer, and not the one that ends it. Its
    users begin at 1, which is right for a non-legacy tokenizer, and else for a single question.
    """
    tokenizer, slow = make(name, legacy, "<|im_start|>", "<|im_end|>")
    style = llava_words.STYLES["chatml"]
    for texts in DIALOGUES:
        ids, wrong = llava_words.sample(style, texts, slow)
        labels = chatml_labels(ids, slow)
        rendered = render(texts, "chatml", tokenizer)
        assert rendered.tokens.tolist() == ours(ids, tokenizer)
        assert labels_of(rendered) == labels != wrong
        if not legacy or len(texts) == 2:
            assert llava_words.sample(style, texts, slow, mpt_start=1)[1] == labels


def test_chatml_without_its_tokens_is_text_as_in_llava(make):
    tokenizer, slow = make("small", True)
    ids, _ = llava_words.sample(llava_words.STYLES["chatml"], DIALOGUES[0], slow)
    rendered = render(DIALOGUES[0], "chatml", tokenizer)
    assert rendered.tokens.tolist() == ours(ids, tokenizer)
    assert learned_text(rendered, tokenizer) == "A barred spiral.<|im_end|>"
    assert chat.stop_ids("chatml", tokenizer) == (tokenizer.eos_id,)


@llava_words.needs_tokenizers
def test_golden_vectors_of_llava(make):
    tokenizer, _ = make("llama2.model", False)
    system = [
        *(1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255),
        *(4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879),
        *(5155, 29889, 3148, 1001, 29901, 29871, 32000, 29871, 13),
    ]
    question = [Turn("human", "<image>\nWhat is shown in this image?")]
    asked = [5618, 338, 4318, 297, 445, 1967, 29973, 319, 1799, 9047, 13566, 29901]
    assert chat.prompt(question, "vicuna_v1", tokenizer, 1) == system + asked
    human = [5199 if token == 1404 else token for token in system]
    assert chat.prompt(question, "llava_v1", tokenizer, 1) == human + asked
    assert chat.stop_ids("vicuna_v1", tokenizer) == (2,)
    assert chat.stop_ids("plain", tokenizer) == (2, 13)
    assert chat.prompt(question, "plain", tokenizer, 1) == [1, 32000]


@llava_words.needs_tokenizers
def test_llama_3_is_metas_format(tmp_path):
    """Meta encodes header, text and end one by one (its tokenizer is tiktoken's)."""
    tiktoken = pytest.importorskip("tiktoken")
    load = pytest.importorskip("tiktoken.load")
    converter = pytest.importorskip("transformers.convert_slow_tokenizer")
    path = f"{llava_words.TOKENIZERS}/llama3.tiktoken"
    names = ["begin_of_text", "end_of_text"] + [f"reserved_special_token_{i}" for i in range(4)]
    names += ["start_header_id", "end_header_id", "reserved_special_token_4", "eot_id"]
    specials = {f"<|{name}|>": 128000 + number for number, name in enumerate(names)}
    converted = converter.TikTokenConverter(path, extra_special_tokens=list(specials))
    (tmp_path / "tokenizer.json").write_text(converted.converted().to_str())
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    meta = tiktoken.Encoding(
        "llama3",
        pat_str=converter.TikTokenConverter(path).pattern,
        mergeable_ranks=load.load_tiktoken_bpe(path),
        special_tokens=specials,
    )

    def header(role):
        role = {"human": "user"}.get(role, role)
        return [128006, *meta.encode_ordinary(role), 128007, *meta.encode_ordinary("\n\n")]

    turns = turns_of(["What is it? ", "\u65e5\u672c \U0001f30c.\n", "Sure?", "Yes <|eot_id|>"])
    expected, labels = [128000], [IGNORED]
    for turn in turns:
        said = [*meta.encode_ordinary(turn.text.strip()), 128009]
        expected += header(turn.role) + said
        learned = said if turn.role == "assistant" else [IGNORED] * len(said)
        labels += [IGNORED] * len(header(turn.role)) + learned
    rendered = chat.render("m31", turns, "", "llama_3", tokenizer, 0)
    assert rendered.tokens.tolist() == expected
    assert labels_of(rendered) == labels
    assert chat.stop_ids("llama_3", tokenizer) == (128009,)


def test_several_images(make):
    """LLaVA leaves one of several markers; here each image keeps its place and a line."""
    tokenizer, slow = make("small", True)
    texts = ["Compare <image> with <image>", "Alike.", "<image>", "A third."]
    rendered = render(texts, "vicuna_v1", tokenizer)
    shown = ["<image>\n<image>\nCompare  with", "Alike.", "<image>", "A third."]
    ids, labels = llava_words.sample(llava_words.STYLES["vicuna_v1"], shown, slow)
    assert rendered.tokens.tolist() == ours(ids, tokenizer)
    assert labels_of(rendered) == labels
    captioned = render(texts, "plain", tokenizer, "Three.")
    assert captioned.tokens.tolist()[:4] == [tokenizer.bos_id] + [tokenizer.image_id] * 3
