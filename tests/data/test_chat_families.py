"""Each family's own tokenizer and chat template (`template: model`), beside transformers."""

import functools
import itertools

import family_tokenizers
import llava_words
import pytest
import regex
from dialogues import messages_of, processor_of, turns_of
from family_tokenizers import FAMILIES
from transformers import AutoTokenizer

from astrollava_jax.data import chat
from astrollava_jax.data.chat_export import for_pictures
from astrollava_jax.data.tokenizer import Tokenizer

TEXTS = ["What is this?  ", "A ring.", "Sure?\n", " Yes, \U0001f30c \u00e9."]
PROBES = ["The  galaxy's 1234 arms\n\n  are  blue", "<|eot_id|> <|im_end|><end_of_turn>", "e\u0301",
          " \t\r\n", "", "IT'S \u65e5\u672c \U0001f30c", "it's   we'LL 12345"]  # fmt: skip


@functools.cache
def _made(name, folder):
    published = FAMILIES[name].write(folder / "published")
    tokenizer = Tokenizer.from_folder(published)
    written = folder / "written"
    written.mkdir()
    for file, content in tokenizer.files().items():
        (written / file).write_bytes(content)
    template = for_pictures(FAMILIES[name].config["chat_template"])
    processor = processor_of(written, template)
    return tokenizer, AutoTokenizer.from_pretrained(published), processor


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Its facts, our tokenizer, the published one in transformers, and a processor on ours."""
    folder = tmp_path_factory.getbasetemp() / request.param.replace(" ", "_")
    return FAMILIES[request.param], *_made(request.param, folder)


def ids_of(theirs, texts, **options):
    found = theirs.apply_chat_template(messages_of(texts), return_dict=False, **options)
    return list(found)


def test_a_dialogue_gets_the_ids_of_transformers(family):
    _, tokenizer, theirs, _ = family
    rendered = chat.render("m57", turns_of(TEXTS), "", "model", tokenizer, 0)
    assert rendered.tokens.tolist() == ids_of(theirs, TEXTS)
    for count in (1, 3):
        asked = chat.prompt(turns_of(TEXTS[:count]), "model", tokenizer, 0)
        assert asked == ids_of(theirs, TEXTS[:count], add_generation_prompt=True)
        assert rendered.tokens.tolist()[: len(asked)] == asked


def test_pictures_in_any_turn_get_the_ids_of_transformers(family):
    _, tokenizer, _, processor = family
    picture = {"type": "image"}
    words = [{"type": "text", "text": "Are these alike?"}]
    messages = messages_of(TEXTS)
    messages[0]["content"] = [picture, picture, *words]
    messages[2]["content"] = [picture, *words]
    turns = turns_of(TEXTS)
    turns[0] = turns_of(["<image> Are these <image>alike?"])[0]
    turns[2] = turns_of(["Are these alike? <image>"])[0]
    text = processor.apply_chat_template(messages[:3], add_generation_prompt=True)
    bos = tokenizer.adds_bos and not text.startswith(tokenizer.literals["bos_token"])
    expected = processor.tokenizer(text, add_special_tokens=bos).input_ids
    assert chat.prompt(turns[:3], "model", tokenizer, 3) == expected
    assert expected.count(tokenizer.image_id) == 3


def test_learned_are_the_answers_and_what_ends_them(family):
    facts, tokenizer, _, _ = family
    end = tokenizer.special_id(facts.answer_ends)
    texts = ["What is <|end|> this?", f"A {facts.answer_ends} ring.", "Sure?", "Yes <image>"]
    rendered = chat.render("m57", turns_of(texts), "", "model", tokenizer, 0)
    learned = rendered.tokens[rendered.learned].tolist()
    assert (learned.count(end), learned[-1]) == (2, end)
    assert tokenizer.decode(learned[: learned.index(end)]).strip() == texts[1]
    assert tokenizer.decode(learned[learned.index(end) + 1 :]).strip() == texts[3]
    assert chat.stop_ids("model", tokenizer) == tuple(sorted({end, tokenizer.eos_id}))


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad", "unknown"),
    [
        ("qwen2", None, "<|im_end|>", "<|endoftext|>", None),
        ("llama 3", "<|begin_of_text|>", "<|eot_id|>", "<pad>", None),
        ("gemma 2", "<bos>", "<eos>", "<pad>", "<unk>"),
        ("phi 3", "<s>", "<|endoftext|>", "<|endoftext|>", "<unk>"),
        ("mistral 0.3", "<s>", "</s>", "<pad>", "<unk>"),
    ],
)
def test_special_tokens_are_the_familys_and_a_missing_pad_is_added(
    name, bos, eos, pad, unknown, tmp_path
):
    published = FAMILIES[name].write(tmp_path)
    tokenizer, theirs = Tokenizer.from_folder(published), AutoTokenizer.from_pretrained(published)
    found = [tokenizer.literals.get(f"{which}_token") for which in ("bos", "eos", "pad", "unk")]
    assert found == [bos, eos, pad, unknown]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    added = [tokenizer.image_id] + [tokenizer.pad_id] * (theirs.pad_token_id is None)
    assert added == list(range(len(theirs), len(theirs) + len(added)))
    assert tokenizer.pad_id != tokenizer.eos_id or name == "phi 3"  # where it was published so
    assert tokenizer.encode_prompt("a") == theirs("a").input_ids


def joined_by_rank(word, ranks):
    """As tiktoken does: the pair that makes the word of the lowest rank is joined first."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, 1 << 30) for left, right in itertools.pairwise(parts)]
        place = pairs.index(min(pairs))
        if pairs[place] == 1 << 30:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


@llava_words.needs_tokenizers
def test_bytes_are_joined_as_tiktoken_does(tmp_path):
    tokenizer = Tokenizer.from_folder(FAMILIES["llama 3"].write(tmp_path))
    ranks = family_tokenizers.llama_3_ranks()
    pattern = regex.compile(family_tokenizers.TikTokenConverter().pattern)
    assert tokenizer.encode("Hello world")[0] == [9906, 1917]
    for probe in PROBES:
        expected = [
            number
            for word in pattern.findall(probe)
            for number in joined_by_rank(word.encode(), ranks)
        ]
        assert tokenizer.encode(probe)[0] == expected, probe
        assert tokenizer.encode(probe, first=False)[0] == expected, probe
        assert tokenizer.decode(expected) == probe
