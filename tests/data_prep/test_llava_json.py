"""LLaVA JSON to records: what is taken, and how each thing that cannot be is named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from astrollava_jax.data.example import Example, Turn, decode
from astrollava_jax.data.sources import TFRecordSource
from data_prep import llava_json
from data_prep.split import held_out


def _says(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


DIALOGUE = _says(("human", "<image>\nWhat is this?"), ("gpt", "A nebula."))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("1.jpg", "sub/2.png", "3.jpg", "4.jpg")):
        Image.new("RGB", (40, 30), (number * 50, 0, 0)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return folder


@pytest.fixture
def run(tmp_path, images, capsys):
    """Runs the command on samples; gives its exit code, what it said, and the records it wrote."""

    def run(samples, *options: str):
        path = tmp_path / "samples.json"
        path.write_text(json.dumps(samples))
        out = tmp_path / "out"
        arguments = ["--json", str(path), "--images", str(images), "--out", str(out), *options]
        code = llava_json.main(arguments)
        printed = capsys.readouterr()
        written = {part.name: _records(part) for part in out.iterdir()} if out.exists() else {}
        return code, printed.out + printed.err, written

    return run


def _records(folder) -> list[Example]:
    source = TFRecordSource(folder)
    return [decode(source[number]) for number in range(len(source))]


def test_samples_become_records(run, images):
    code, printed, written = run(
        [
            {
                "id": "a",
                "image": "1.jpg",
                "conversations": DIALOGUE,
                "model": "",
                "caption": "Red.",
            },
            {"id": 7, "conversations": _says(("human", "Hi"), ("astrollava", "Hello"))},
            {
                "image": ["1.jpg", "sub/2.png"],
                "conversations": [
                    {"from": "human", "value": "<image> or <image>?", "markdown": None},
                    {"from": "gpt", "value": "Neither."},
                ],
                "credit": "Someone",
                "url": None,
            },
            {"id": "d", "image": "1.jpg", "caption": "Only a caption."},
        ]
    )
    first, second = ((images / name).read_bytes() for name in ("1.jpg", "sub/2.png"))
    question = Turn("human", "<image>\nWhat is this?")
    assert code == 0
    assert written == {
        "train": [
            Example("a", (first,), (question, Turn("assistant", "A nebula.")), caption="Red."),
            Example("7", turns=(Turn("human", "Hi"), Turn("assistant", "Hello"))),
            Example(
                "sample-2",
                (first, second),
                (Turn("human", "<image> or <image>?"), Turn("assistant", "Neither.")),
                credit="Someone",
            ),
            Example("d", (first,), caption="Only a caption."),
        ]
    }
    for line in ("samples read 4", "one image 2", "text only 1", "several images 1"):
        assert line in " ".join(printed.split())


@pytest.mark.parametrize(
    "sample, named",
    [
        ("just text", "not an object with keys 1 sample 1 is a str"),
        ({"image": "9.jpg", "conversations": DIALOGUE}, "image file missing 1 bad: "),
        ({"image": "broken.jpg", "conversations": DIALOGUE}, "image cannot be decoded 1 bad: "),
        ({"image": 5, "conversations": DIALOGUE}, "image is neither a path nor a list of paths 1"),
        ({"image": ["1.jpg", ""], "caption": "A."}, "image is neither a path nor a list of paths"),
        ({"image": "1\0.jpg", "caption": "A."}, r"path that no file can have 1 bad: '1\x00.jpg'"),
        ({"image": "\ud83d.jpg", "caption": "A."}, r"no file can have 1 bad: '\ud83d.jpg'"),
        (
            {"image": "../samples.json", "caption": "A."},
            "leads out of the folder 1 bad: ../samples",
        ),
        ({"image": "sub/../../x.jpg", "caption": "A."}, "leads out of the folder 1 bad: sub/../.."),
        ({"image": "/1.jpg", "caption": "A."}, "does not start from the folder 1 bad: /1.jpg"),
        ({"image": "sub", "caption": "A."}, "image is a folder, not a file 1 bad: "),
        ({"image": "1.jpg/2.jpg", "caption": "A."}, "image file missing 1 bad: "),
        (
            {"id": ["a"], "caption": "A."},
            "id is neither a text nor a number 1 sample 1: found a list",
        ),
        (
            {"id": True, "caption": "A."},
            "id is neither a text nor a number 1 sample 1: found a bool",
        ),
        ({"id": "a\ud83d", "caption": "A."}, r"half a character 1 sample 1: id: '\ud83d' at 1"),
        ({"caption": "Red \ude00"}, r"half a character 1 bad: caption: '\ude00' at 4"),
        ({"caption": "A.", "credit": "\ud83d"}, r"half a character 1 bad: credit: '\ud83d' at 0"),
        (
            {"conversations": _says(("human", "What?"), ("gpt", "A nebula \ud83d"))},
            r"text with half a character 1 bad: a turn of assistant: '\ud83d' at 9",
        ),
        (
            {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "A."}]},
            "turn that is not a text 1 bad: of human, found a NoneType",
        ),
        ({"conversations": ["Hello"], "caption": "A."}, "conversations are not a list of turns 1"),
        ({"conversations": 0, "caption": "A."}, "conversations are not a list of turns 1 bad"),
        (
            {"conversations": _says(("system", "Be"), ("gpt", "I am"))},
            "unknown role 1 bad: 'system'",
        ),
        ({"conversations": _says(("human", " "), ("gpt", "I am"))}, "empty turn 1 bad: of human"),
        ({"conversations": []}, "no answer and no caption to learn 1 bad"),
        ({"conversations": _says(("human", "Hello?"))}, "no answer and no caption to learn 1 bad"),
        ({"conversations": "Hello"}, "conversations are not a list of turns 1 bad"),
        ({"conversations": {"from": ["human"], "value": []}}, "not a list of turns 1 bad"),
        ({"conversations": DIALOGUE}, "wrong number of <image> markers 1 bad: 1 for 0 images"),
        (
            {"image": "1.jpg", "conversations": DIALOGUE + DIALOGUE},
            "wrong number of <image> markers 1 bad: 2 for 1 image",
        ),
        (
            {"conversations": _says(("human", "A"), ("human", "B"), ("gpt", "C"))},
            "turns do not alternate 1 bad: two of human at 0",
        ),
    ],
)
def test_what_cannot_be_taken_is_named_and_counted(run, sample, named):
    bad = {"id": "bad", **sample} if isinstance(sample, dict) else sample
    code, printed, written = run([{"id": "good", "image": "1.jpg", "conversations": DIALOGUE}, bad])
    assert code == 0
    assert [example.id for example in written["train"]] == ["good"]
    assert named in " ".join(printed.split())


def test_of_many_bad_samples_the_first_are_named(run):
    bad = [{"id": f"b{n}", "image": "no.jpg", "conversations": DIALOGUE} for n in range(8)]
    _, printed, _ = run([{"id": "good", "caption": "A star."}, *bad])
    lines = " ".join(printed.split())
    assert "image file missing 8" in lines and "b4: " in lines and "b5: " not in lines
    assert "and 3 more" in lines


def test_an_assistant_that_speaks_first_is_cut_off_and_counted(run):
    spoken = _says(("gpt", "Welcome."), ("human", "Hi"), ("gpt", "Hello"))
    _, printed, written = run([{"id": "a", "conversations": spoken}])
    assert written["train"][0].turns == (Turn("human", "Hi"), Turn("assistant", "Hello"))
    assert "changed: the assistant spoke first" in printed


def test_dialogues_as_two_lists_are_taken(run):
    spoken = {"from": ["human", "astrollava"], "value": ["Hi", "Hello"]}
    _, _, written = run([{"id": "a", "conversation": spoken}])
    assert written["train"][0].turns == (Turn("human", "Hi"), Turn("assistant", "Hello"))


def test_images_named_by_the_id_are_taken_on_request(run, images):
    sample = {"id": "3", "conversations": _says(("human", "What?"), ("gpt", "A star."))}
    _, _, written = run([sample], "--id-images")
    assert written["train"][0].images == ((images / "3.jpg").read_bytes(),)


def test_no_image_is_on_both_sides_of_the_split(run):
    samples = [
        {"id": f"{name}{turn}", "image": name, "conversations": DIALOGUE}
        for name in ("1.jpg", "sub/2.png", "3.jpg", "4.jpg")
        for turn in range(3)
    ]
    code, _, written = run(samples, "--heldout", "0.25", "--split", "fit")
    assert code == 0 and {part: len(found) for part, found in written.items()} == {
        "fit": 9,
        "heldout": 3,
    }
    names = {part: {example.id[:-1] for example in found} for part, found in written.items()}
    assert not names["fit"] & names["heldout"]


@pytest.mark.parametrize("fraction", ["0.34", "0.67"])
def test_samples_that_share_an_image_at_any_remove_stay_together(run, fraction):
    named = (["1.jpg", "sub/2.png"], "./1.jpg", ["sub/../sub//2.png"], "3.jpg", "4.jpg")
    samples = [{"id": f"{n}", "image": each, "caption": "A."} for n, each in enumerate(named)]
    _, _, written = run(samples, "--heldout", fraction)
    sides = [{example.id for example in found} & set("012") for found in written.values()]
    assert len(sides) == 2 and set() in sides and {"0", "1", "2"} in sides


def test_samples_without_images_are_held_out_one_by_one(run):
    samples = [{"id": f"{n}", "caption": "A star."} for n in range(8)]
    _, _, written = run(samples, "--heldout", "0.25")
    assert {part: len(found) for part, found in written.items()} == {"train": 6, "heldout": 2}


FOUR = [{"id": name, "image": f"{name}.jpg", "caption": "A."} for name in ("1", "3", "4", "5")]


@pytest.fixture
def held_back(images):
    """The image, of the four in `FOUR`, that a quarter held out of them is."""
    (images / "5.jpg").write_bytes((images / "4.jpg").read_bytes())
    (name,) = held_out((sample["image"] for sample in FOUR), 0.25)
    return images / name


def test_what_is_held_out_is_chosen_among_the_samples_that_can_be_taken(run, held_back):
    held_back.unlink()
    code, printed, written = run(FOUR, "--heldout", "0.25")
    assert code == 0 and "image file missing 1" in " ".join(printed.split())
    assert {part: len(found) for part, found in written.items()} == {"train": 2, "heldout": 1}


def test_when_nothing_is_left_to_hold_out_no_set_stays_behind(run, held_back):
    whole = held_back.read_bytes()
    held_back.write_bytes(whole[:20])
    code, printed, written = run(FOUR, "--heldout", "0.25")
    assert code == 2 and written == {} and "no examples to write" in printed
    assert f"image cannot be decoded 1 {held_back.stem}: " in " ".join(printed.split())
    held_back.write_bytes(whole)
    code, _, written = run(FOUR, "--heldout", "0.25")
    assert code == 0 and {example.id for example in written["heldout"]} == {held_back.stem}


def test_when_nothing_is_left_to_train_on_no_set_stays_behind(run, images, held_back):
    for sample in FOUR:
        if sample["image"] != held_back.name:
            (images / sample["image"]).write_bytes(b"no picture")
    code, printed, written = run(FOUR, "--heldout", "0.25")
    assert code == 2 and written == {}
    assert "image cannot be decoded 3" in " ".join(printed.split())


def test_images_are_stored_at_the_size_asked_for(run):
    _, _, written = run([{"id": "a", "image": "1.jpg", "caption": "Red."}], "--size", "20")
    with Image.open(io.BytesIO(written["train"][0].images[0])) as picture:
        assert picture.size == (20, 15)
        assert np.asarray(picture).shape == (15, 20, 3)


@pytest.mark.parametrize(
    "samples, options, named",
    [
        ({"id": "a"}, (), "expected a list of samples, found dict"),
        ([], (), "expected a list of samples"),
        ([{"id": "a"}], (), "no examples to write"),
        ([{"id": "a", "caption": "A."}], ("--heldout", "1.5"), "held-out fraction"),
        ([{"id": "a", "caption": "A."}], ("--heldout", "0.5"), "would leave none to train on"),
        (
            [{"id": "a", "caption": "A."}, {"id": "b", "caption": "B."}],
            ("--heldout", "0.5", "--split", "heldout"),
            "--split heldout: held-out samples go there",
        ),
        ([{"id": "a", "caption": "A."}], ("--name", "my set"), "expected name to be letters"),
        ([{"id": "a", "caption": "A."}], ("--images", "nowhere"), "nowhere: expected the folder"),
        ([{"id": "a", "caption": "A."}], ("--json", "nowhere.json"), "nowhere.json"),
    ],
)
def test_a_mistake_of_the_users_ends_with_2(run, samples, options, named):
    code, printed, written = run(samples, *options)
    assert code == 2 and named in printed and written == {}


def test_a_set_that_is_there_is_kept(run):
    assert run([{"id": "a", "caption": "A."}])[0] == 0
    code, printed, written = run([{"id": "b", "caption": "B."}])
    assert code == 2 and "choose another --out" in printed
    assert [example.id for example in written["train"]] == ["a"]
