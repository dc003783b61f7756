import pytest
from scipy import stats

from astrollava_jax.inference.evaluate import (
    Question,
    accuracy,
    closed_result,
    derangement,
    evaluate,
    table,
    wilson_interval,
)


def last_word(text: str) -> str | None:
    return text.split()[-1] if text else None


def questions(kind: str, color: str) -> list[Question]:
    return [
        Question("kind", "what is this?", kind, last_word),
        Question("colour", "what colour?", color, last_word),
    ]


PICTURES = ["red ring", "red star", "blue star", "red star"]
ASKED = [questions(*reversed(picture.split())) for picture in PICTURES]


def sees(images, prompts):
    """Answers from the picture, which is its own description."""
    words = [0 if "colour" in prompt else 1 for prompt in prompts]
    return [f"it is {image.split()[word]}" for image, word in zip(images, words)]


def test_who_sees_is_right_and_blind_at_what_the_shuffle_gives():
    found = evaluate(sees, PICTURES, ASKED, shuffle_seed=3)
    shown = [PICTURES[i] for i in derangement(4, 3)]
    kinds, colours = found.results
    assert (kinds.name, kinds.correct, kinds.count, kinds.majority) == ("kind", 4, 4, 0.75)
    assert (colours.name, colours.correct, colours.count, colours.majority) == (
        "colour",
        4,
        4,
        0.75,
    )
    pairs = [(a.split(), b.split()) for a, b in zip(PICTURES, shown)]
    assert colours.blind == sum(a[0] == b[0] for a, b in pairs) / 4
    assert kinds.blind == sum(a[1] == b[1] for a, b in pairs) / 4
    assert found.answers[0] == ["it is ring", "it is red"]
    assert [q.right(a) for q, a in zip(ASKED[0], found.answers[0])] == [True, True]


def test_who_does_not_look_scores_alike_with_shuffled_pictures():
    found = evaluate(lambda images, prompts: ["a star"] * len(prompts), PICTURES, ASKED)
    kinds, colours = found.results
    assert kinds.accuracy == kinds.blind == kinds.majority == 0.75
    assert colours.accuracy == colours.blind == 0


def test_a_shared_prompt_is_answered_once():
    calls = []

    def answer(images, prompts):
        calls.append(list(zip(images, prompts)))
        return [f"the {image}" for image in images]

    captioned = [
        Question("kind", "", "star", last_word),
        Question("colour", "", "red", lambda text: "red" if "red" in text else None),
    ]
    found = evaluate(answer, ["red star", "blue star"], [captioned, []], shuffle_seed=None)
    assert calls == [[("red star", "")]]
    assert [r.correct for r in found.results] == [1, 1]
    assert [r.blind for r in found.results] == [None, None]
    assert found.answers == [["the red star", "the red star"], []]


@pytest.mark.parametrize(("correct", "count"), [(0, 5), (5, 5), (76, 90), (393, 400), (1, 2)])
def test_the_interval_is_wilsons(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_answer_is_a_wrong_answer():
    assert accuracy(["two", None, "three", "two"], ["two", "two", "two", "two"]) == 0.5
    with pytest.raises(ValueError, match="found 1 and 2"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="found 0 and 0"):
        accuracy([], [])


@pytest.mark.parametrize("count", [2, 3, 10, 301])
def test_nothing_stays_in_its_place(count):
    shown = derangement(count, seed=1)
    assert sorted(shown) == list(range(count))
    assert all(place != picture for place, picture in enumerate(shown))
    assert shown == derangement(count, seed=1)


def test_a_lone_picture_cannot_be_shuffled():
    with pytest.raises(ValueError, match="at least two pictures"):
        evaluate(sees, PICTURES[:1], ASKED[:1])
    assert evaluate(sees, PICTURES[:1], ASKED[:1], shuffle_seed=None).results[0].accuracy == 1


@pytest.mark.parametrize(
    ("asked", "message"), [(ASKED[:2], "found 2 for 4"), ([[]] * 4, "at least one question")]
)
def test_what_does_not_fit_is_said(asked, message):
    with pytest.raises(ValueError, match=message):
        evaluate(sees, PICTURES, asked)


def test_the_table_reads_in_a_terminal():
    truths = ["spiral"] * 3 + ["ring"]
    results = [
        closed_result("kind", truths, truths, ["ring"] * 4),
        closed_result("colour", ["red"] * 20, ["red"] * 10 + [None] * 10),
    ]
    assert table(results).splitlines() == [
        "question  right  of  accuracy    95% interval  blind  majority",
        "kind          4   4     1.000  0.510 to 1.000  0.250     0.750",
        "colour       10  20     0.500  0.299 to 0.701      -     1.000",
    ]
