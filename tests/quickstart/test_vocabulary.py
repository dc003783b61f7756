import itertools

import pytest
from transformers import AutoProcessor, AutoTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from astrollava_jax.quickstart.questions import QUESTIONS
from astrollava_jax.quickstart.sky import scene
from astrollava_jax.quickstart.vocabulary import SPECIALS, tokenizer_files, words
from astrollava_jax.quickstart.words import ASKED, caption, dialogue


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def _messages(turns):
    roles = {"human": "user", "assistant": "assistant"}
    return [{"role": roles[turn.role], "content": turn.text} for turn in turns]


def test_transformers_sees_the_special_tokens(tokenizer):
    ids = [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<image>")]
    assert ids == [0, 1, 2, 3, 4]
    assert len(tokenizer) == len(words()) == len(set(words())) < 128


def test_everything_said_is_in_the_vocabulary(tokenizer):
    for index in range(1000):
        s = scene(9, index)
        text = tokenizer.apply_chat_template(_messages(dialogue(s)), tokenize=False)
        for said in (text, caption(s) + "\n"):
            assert tokenizer.unk_token_id not in tokenizer(said).input_ids, said
    for wording in [q.text for q in QUESTIONS.values()] + [w for ws in ASKED.values() for w in ws]:
        assert tokenizer.unk_token_id not in tokenizer(wording).input_ids


def test_decoding_gives_the_text_back(tokenizer):
    for index in range(500):
        text = caption(scene(9, index)) + "\n"
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_each_word_mark_and_newline_is_one_token(tokenizer):
    ids = tokenizer("This is an EDGE-ON galaxy,\nflat.").input_ids
    pieces = ["<s>", "this", "is", "an", "edge-on", "galaxy", ",", "\n", "flat", "."]
    assert tokenizer.convert_ids_to_tokens(ids) == pieces


def test_a_foreign_word_is_unknown(tokenizer):
    ids = tokenizer("what's Übermensch-like?", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["what", "<unk>", "<unk>", "<unk>", "?"]


def test_spans_point_into_the_text(tokenizer):
    text = "Two red   galaxies."
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert [text[start:end] for start, end in offsets] == ["Two", "red", "galaxies", "."]


def test_the_template_is_compact(tokenizer):
    messages = [
        {"role": "user", "content": "what is this?"},
        {"role": "assistant", "content": "a ring galaxy."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s>user: what is this? assistant: a ring galaxy.</s>"
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<s>user: what is this? assistant:"


def test_a_longer_dialogue_begins_as_the_shorter_one(tokenizer):
    messages = _messages(dialogue(scene(0, 0)))
    rendered = [
        tokenizer.apply_chat_template(messages[:number], tokenize=False)
        for number in range(2, len(messages) + 1, 2)
    ]
    for shorter, longer in itertools.pairwise(rendered):
        assert longer.startswith(shorter)
    open_ended = tokenizer.apply_chat_template(
        messages[:3], tokenize=False, add_generation_prompt=True
    )
    assert rendered[1].startswith(open_ended)


def test_the_template_refuses_other_roles(tokenizer):
    with pytest.raises(Exception, match="found system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "hello"}], tokenize=False)


def test_a_llava_processor_uses_it(tokenizer, tmp_path):
    sides = {"height": 64, "width": 64}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=sides),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    question = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    assert prompt == "<s>user: <image>\nwhat is this? assistant:"
    assert processor.image_token_id == SPECIALS.index("<image>")
