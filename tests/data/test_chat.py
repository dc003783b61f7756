"""Ids and masks of dialogues, against LLaVA's own algorithm restated over sentencepiece."""

import itertools
import json

import llava_words
import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Rust
from tokenizers.processors import TemplateProcessing

from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.tokenizer import Tokenizer

DIALOGUES = [
    ["<image>\nWhat is this?", "A barred spiral."],
    ["<image>", "2 arms"],
    [
        *("<image>\nHow many arms?  Count!", "2 arms.\n- one\n- two"),
        *("And the colour?", "\u65e5\u672c \U0001f30c blue"),
        *("Thanks \u00e9", "  You are  welcome "),
    ],
    ["No image here\n", "1", "Sure? ", "Yes"],
]
LLAVA = ["vicuna_v1", "llava_v1", "llama_2", "mistral_instruct"]
REAL = pytest.param("llama2.model", marks=llava_words.needs_tokenizers)
IGNORED = llava_words.IGNORED


def turns_of(texts):
    return [Turn("assistant" if i % 2 else "human", text) for i, text in enumerate(texts)]


def render(texts, template, tokenizer, caption=""):
    images = sum(text.count("<image>") for text in texts[::2])
    return chat.render("m31", turns_of(texts), caption, template, tokenizer, images)


def labels_of(rendered):
    pairs = zip(rendered.tokens.tolist(), rendered.learned.tolist())
    return [token if learned else IGNORED for token, learned in pairs]


def learned_text(rendered, tokenizer):
    return tokenizer.decode(rendered.tokens[rendered.learned].tolist())


def ours(ids, tokenizer):
    return [tokenizer.image_id if i == llava_words.IMAGE else i for i in ids]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes (and keeps) our tokenizer and the slow one of a SentencePiece model."""
    made = {}

    def make_both(name, legacy, *added):
        key = (name, legacy, added)
        if key not in made:
            content = llava_words.model_bytes(name)
            start = llava_words.SlowLlama(content, legacy).model.vocab_size()
            ids = {literal: start + number for number, literal in enumerate(added)}
            folder = tmp_path_factory.mktemp("model")
            (folder / "tokenizer.model").write_bytes(content)
            config = {
                "legacy": legacy,
                "added_tokens_decoder": {str(i): {"content": text} for text, i in ids.items()},
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            slow = llava_words.SlowLlama(content, legacy, ids)
            made[key] = (Tokenizer.from_folder(folder), slow)
        return made[key]

    return make_both


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
