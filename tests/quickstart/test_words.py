import re

import pytest

from astrollava_jax.quickstart.questions import QUESTIONS
from astrollava_jax.quickstart.sky import scene
from astrollava_jax.quickstart.words import ASKED, caption, dialogue, lexicon, told

SCENES = [scene(6, index) for index in range(2000)]


@pytest.fixture(scope="module")
def dialogues():
    return [(s, dialogue(s)) for s in SCENES]


@pytest.fixture(scope="module")
def captions():
    return [(s, caption(s)) for s in SCENES]


def _pairs(turns):
    return list(zip(turns[::2], turns[1::2]))


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_captions_tell_the_truth(question, captions):
    for s, text in captions:
        assert question.read_caption(text) == question.truth(s), text


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_answers_tell_the_truth(question, dialogues):
    asked = 0
    for s, turns in dialogues:
        for human, assistant in _pairs(turns):
            if human.text in ASKED[question.name]:
                asked += 1
                assert question.read_answer(assistant.text) == question.truth(s), assistant.text
    assert asked > 300


def test_descriptions_in_dialogues_tell_the_truth(dialogues):
    described = 0
    for s, turns in dialogues:
        for human, assistant in _pairs(turns):
            if human.text in ASKED["caption"]:
                described += 1
                for question in QUESTIONS.values():
                    assert question.read_caption(assistant.text) == question.truth(s)
    assert 400 < described < 600  # a quarter


def test_captions_say_size_tilt_and_place(captions):
    for s, text in captions:
        words = text.replace(",", "").replace(".", "").split()
        assert all(word in words for word in (s.size, s.tilt, s.position) if word)


def test_dialogues_alternate_and_never_ask_twice(dialogues):
    for s, turns in dialogues:
        assert [turn.role for turn in turns] == ["human", "assistant"] * (len(turns) // 2)
        topics = [
            next(topic for topic, wordings in ASKED.items() if turn.text in wordings)
            for turn in turns[::2]
        ]
        assert len(set(topics)) == len(topics) >= 2
        assert set(topics) <= {*told(s), "caption"}
        assert ("arms" in topics) == (s.arms is not None)


def test_no_wording_belongs_to_two_questions():
    wordings = [wording for several in ASKED.values() for wording in several]
    assert len(set(wordings)) == len(wordings)


def test_words_are_varied_and_the_same_each_time():
    first = [s for s in SCENES if s.kind == "ring" and s.count == 1][:100]
    assert len({caption(s) for s in first}) > 80
    assert [caption(s) for s in first] == [caption(scene(s.seed, s.index)) for s in first]
    assert [dialogue(s) for s in first] == [dialogue(scene(s.seed, s.index)) for s in first]


def test_all_that_is_said_is_in_the_lexicon(captions, dialogues):
    known = set(lexicon())
    for (_, text), (_, turns) in zip(captions, dialogues):
        said = " ".join([text, *(turn.text for turn in turns)])
        assert set(re.findall(r"[^\s.,?]+", said)) <= known
        assert said == said.lower()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("kind", "these are star clusters.", "cluster"),
        ("kind", "A Ring Galaxy", "ring"),
        ("kind", "a spiral or an elliptical galaxy.", None),
        ("kind", "something bright.", None),
        ("arms", "it has three arms.", "three"),
        ("arms", "two or three.", None),
        ("colour", "the colour is blue.", "blue"),
        ("colour", "bluered", None),
        ("count", "just one.", "one"),
        ("count", "", None),
    ],
)
def test_answers_are_read(name, text, value):
    assert QUESTIONS[name].read_answer(text) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "here is a small red spiral galaxy with three arms.", "one"),
        ("count", "two large, tilted and red edge-on galaxies.", None),
        ("count", "this is a picture of two red ring galaxies.", "two"),
        ("count", "a ring galaxy. here are two ring galaxies.", None),
        ("count", "a red star field.", None),
        ("arms", "three spiral galaxies.", None),
        ("arms", "a galaxy with two arms.", "two"),
    ],
)
def test_captions_are_read(name, text, value):
    assert QUESTIONS[name].read_caption(text) == value
