"""What of a dialogue is learned, where its images stand, and which faults name the record."""

import itertools
import json

import pytest
from dialogues import DIALOGUES, LLAVA, labels_of, learned_text, render, turns_of
from llava_words import IGNORED
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Rust
from tokenizers.processors import TemplateProcessing

from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.tokenizer import Tokenizer


@pytest.mark.parametrize("template", [*LLAVA, "chatml", "llama_3"])
def test_what_is_learned_reads_as_the_answers(make, template):
    special = ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>")
    special += ("<|start_header_id|>", "<|end_header_id|>")
    tokenizer, _ = make("small", True, *special)
    texts = ["What?", "A spiral </s>, or <image>?", "And <s>that?", "2: \U0001f30c, blue"]
    rendered = chat.render("m31", turns_of(texts), "", template, tokenizer, 0)
    groups = itertools.groupby(labels_of(rendered), key=lambda label: label != IGNORED)
    runs = [list(run) for learned, run in groups if learned]
    assert [tokenizer.decode(run).strip() for run in runs] == texts[1::2]
    ends = chat.stop_ids(template, tokenizer)
    assert all(run[-1] in ends for run in runs)
    assert tokenizer.image_id not in rendered.tokens
    if template != "llama_2":  # whose later turns begin with <s>
        assert rendered.tokens.tolist().count(tokenizer.bos_id) == 1


@pytest.mark.parametrize("template", [*LLAVA, "chatml"])
def test_a_prompt_is_how_the_sample_goes_on(make, template):
    tokenizer, _ = make("small", False, "<|im_start|>", "<|im_end|>")
    texts = DIALOGUES[2]
    rendered = render(texts, template, tokenizer)
    for count in (1, 3, 5):
        asked = chat.prompt(turns_of(texts[:count]), template, tokenizer, 1)
        assert rendered.tokens.tolist()[: len(asked)] == asked
        assert rendered.learned[len(asked)]
        assert not rendered.learned[len(asked) - 1]


def test_images_without_markers_come_first(make):
    tokenizer, _ = make("small", True)
    turns = turns_of([" What? ", "A ring.", "Sure?", "Yes."])
    rendered = chat.render("m57", turns, "", "vicuna_v1", tokenizer, 2)
    marked = render(["<image><image>\nWhat?", "A ring.", "Sure?", "Yes."], "vicuna_v1", tokenizer)
    assert rendered.tokens.tolist() == marked.tokens.tolist()


def test_an_answer_before_any_question_is_dropped(make):
    tokenizer, _ = make("small", True)
    turns = [Turn("assistant", "Hello!"), *turns_of(["What?", "A ring."])]
    dropped = chat.render("m57", turns, "", "vicuna_v1", tokenizer, 0)
    rest = render(["What?", "A ring."], "vicuna_v1", tokenizer)
    assert dropped.tokens.tolist() == rest.tokens.tolist()


def test_an_empty_answer_and_a_last_question_teach_nothing(make):
    tokenizer, _ = make("small", True)
    rendered = render(["What?", "", "Sure?", "Yes.", "Thanks"], "vicuna_v1", tokenizer)
    assert learned_text(rendered, tokenizer) == "Yes."
    assert rendered.tokens[rendered.learned].tolist().count(tokenizer.eos_id) == 1


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["<image> What?", "A ring."], 2, "record 'm31': expected 2 <image> markers .* found 1"),
        (["<image> What?", "A ring."], 0, "record 'm31': expected 0 <image> markers .* found 1"),
        ([], 0, "record 'm31': expected a human turn, found none"),
    ],
)
def test_faults_name_the_record(make, texts, images, message):
    tokenizer, _ = make("small", True)
    with pytest.raises(ValueError, match=message):
        chat.render("m31", turns_of(texts), "", "vicuna_v1", tokenizer, images)


def test_two_questions_in_a_row_name_the_record_and_the_turn(make):
    tokenizer, _ = make("small", True)
    turns = [Turn("human", "What?"), Turn("assistant", "A ring."), Turn("assistant", "Really.")]
    with pytest.raises(ValueError, match=r"record 'm31': turn 3: expected the human, found the as"):
        chat.render("m31", turns, "", "vicuna_v1", tokenizer, 0)
    with pytest.raises(ValueError, match="expected a prompt that ends with a human turn"):
        chat.prompt(turns[:2], "vicuna_v1", tokenizer, 0)


def test_nothing_to_say_of_an_image_is_a_fault(make):
    tokenizer, _ = make("small", True)
    with pytest.raises(ValueError, match="record 'm31': expected a caption or an answer"):
        chat.render("m31", turns_of(["<image>"]), "", "plain", tokenizer, 1)


def test_unknown_templates_and_missing_tokens_are_named(make):
    tokenizer, _ = make("small", True)
    with pytest.raises(ValueError, match=r"expected one of plain, vicuna_v1, .*, found 'vicuna'"):
        chat.stop_ids("vicuna", tokenizer)
    with pytest.raises(ValueError, match=r"expected the token <\|begin_of_text\|>"):
        render(["What?", "A ring."], "llama_3", tokenizer)


@pytest.fixture
def words(tmp_path):
    """A vocabulary of whole words: nothing joins, and spaces are no tokens."""
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    said = ["\n", ".", "?", ":", "USER", "ASSISTANT", "a", "ring", "what", "is", "it"]
    vocabulary = {word: number for number, word in enumerate(specials + said)}
    rust = Rust(models.WordLevel(vocabulary, unk_token="<unk>"))
    piece = Regex(r"\n|\w+|[^\w\s]")
    rust.pre_tokenizer = pre_tokenizers.Split(piece, behavior="removed", invert=True)
    rust.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    rust.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    rust.add_special_tokens(specials)
    (tmp_path / "tokenizer.json").write_text(rust.to_str())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer.from_folder(tmp_path)


def test_a_small_vocabulary_of_words(words):
    """The newline that ends a caption is a word of its own.

    <s> <image> a ring . newline
                # #    # #
    """
    rendered = render(["<image> what is it?"], "plain", words, "a ring.")
    assert rendered.tokens.tolist() == [1, 4, 11, 12, 6, 5]
    assert rendered.learned.tolist() == [False, False, True, True, True, True]
    assert chat.stop_ids("plain", words) == (2, 5)
    rendered = render(["<image> what is it?", "a ring."], "vicuna_v1", words)
    asked, answered = [9, 8, 4, 5, 13, 14, 15, 7, 10, 8], [11, 12, 6, 2]
    assert rendered.tokens.tolist()[-14:] == asked + answered
    assert rendered.learned.tolist()[-14:] == [False] * 10 + [True] * 4
    assert learned_text(rendered, words) == "a ring ."
