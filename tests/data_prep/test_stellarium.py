"""Stellarium's pictures to records: its loose JSON, the join with facts, and the words."""

import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from astrollava_jax.data.example import decode
from astrollava_jax.data.sources import TFRecordSource
from data_prep import openngc, stellarium, stellarium_words
from data_prep.openngc import SkyObject
from data_prep.tally import Refused, Tally

RING = SkyObject(
    key="NGC6720",
    designation="M57",
    also="NGC 6720",
    common_name="the Ring Nebula",
    kind="planetary nebula",
    hubble="",
    constellation="Lyra",
    size_arcmin=(1.27,),
    magnitude=8.8,
    velocity=None,
    right_ascension=283.4,
    declination=33.03,
)
GALAXY = SkyObject(
    key="NGC0224",
    designation="NGC 224",
    also="",
    common_name="",
    kind="elliptical galaxy",
    hubble="E",
    constellation="Andromeda",
    size_arcmin=(60.0, 60.0),
    magnitude=None,
    velocity=-1300,
    right_ascension=10.68,
    declination=41.27,
)
FACTS = {("M", 57): RING, ("NGC", 6720): RING, ("NGC", 224): GALAXY}

TEXTURES = """{ "shortName": "Nebulae, 007 of them,",
  "subTiles" : [
    { "imageCredits": {"short": "A. Person", "infoUrl": "https://example.org/[.5,]"},
      "imageUrl": "m57.png", "minResolution": .25,
      "worldCoords": [[[283.5, +33.1], [283.3, 33.1], [283.3, 0032.96], [283.5, 32.96]]] },
    { "imageCredits": {"Short": "Another"}, "imageUrl": "n6720-survey.png",
      "worldCoords": [[[283.5, 33.1], [283.3, 33.1], [283.3, 32.96], [283.5, 32.96]]], },
    { "imageUrl": "n224.png",
      "worldCoords": [[[11., 41.5], [10.3, 41.5], [10.3, 41.0], [11.0, 41.0]]] },
    { "imageUrl": "ic57.png", "worldCoords": [[[0, 0], [1, 0], [1, 1], [0, 1]]] },
    { "imageUrl": "n0057.png", "worldCoords": [[[0, 0], [1, 0], [1, 1], [0, 1]]] },
    { "imageUrl": "calabash.png", "worldCoords": [[[0, 0], [1, 0], [1, 1], [0, 1]]] },
  ],
}"""


def _look_up(catalogue: str, number: int) -> SkyObject | None:
    if (catalogue, number) == ("NGC", 57):  # a number that belongs to another place in the sky
        return RING
    return FACTS.get((catalogue, number))


@pytest.fixture
def textures(tmp_path):
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / "textures.json").write_text(TEXTURES)
    for name in re.findall(r"[\w-]+\.png", TEXTURES):
        Image.new("P", (64, 64), 3).save(folder / name)
    return folder


def test_loose_json_is_repaired_and_strings_are_left_alone(textures):
    with pytest.raises(json.JSONDecodeError):
        json.loads(TEXTURES)
    first = stellarium.read_textures(textures)[2]
    assert (first.name, first.credit, first.url) == (
        "m57.png",
        "A. Person",
        "https://example.org/[.5,]",
    )
    assert np.array_equal(first.corners[2], [283.3, 32.96])
    repaired = stellarium.repair_json('{"a": [.5, -.5, 007, +3, 1e-3, 5., "1,]",],}')
    assert json.loads(repaired) == {"a": [0.5, -0.5, 7, 3, 0.001, 5, "1,]"]}


def test_the_object_must_be_where_the_picture_is(textures):
    found = {texture.name: texture for texture in stellarium.read_textures(textures)}
    shown = stellarium.find_object(found["n224.png"], _look_up)
    assert shown.object is GALAXY
    # Sides: 0.5 degrees of declination, and 0.7 of right ascension at declination 41.0 and 41.5.
    expected = (0.5 + 0.7 * np.cos(np.radians(41.25))) / 2 * 60
    assert shown.field_arcmin == pytest.approx(expected, rel=1e-3)
    for name, reason in {
        "calabash.png": "no catalogue number",
        "ic57.png": "no such object",
        "n0057.png": r"outside the picture: n0057\.png: NGC6720",
    }.items():
        with pytest.raises(Refused, match=reason):
            stellarium.find_object(found[name], _look_up)


def test_pictures_become_records(textures, tmp_path):
    tally = Tally()
    options = dict(heldout=0.5, seed=0, size=32, mode="pad", tally=tally, look_up=_look_up)
    sets = stellarium.convert(textures, tmp_path / "out", **options)
    records = {part.split: _records(part.folder) for part in sets}
    objects = {
        split: {example.source.split("; ")[1] for example in examples}
        for split, examples in records.items()
    }
    assert sorted(len(examples) for examples in records.values()) == [1, 2]
    assert objects["train"] | objects["heldout"] == {"OpenNGC NGC6720", "OpenNGC NGC0224"}
    assert not objects["train"] & objects["heldout"]
    ring = next(e for found in records.values() for e in found if e.id == "stellarium-m57")
    assert (ring.credit, ring.url) == ("A. Person", "https://example.org/[.5,]")
    assert "OpenNGC, CC BY-SA" in ring.license and "M57" in ring.caption
    assert ring.turns[1].role == "assistant" and "planetary nebula" in ring.turns[1].text
    assert tally.counts["not taken: the object lies outside the picture"] == 1


def _records(folder):
    source = TFRecordSource(folder)
    return [decode(source[number]) for number in range(len(source))]


def test_the_same_seed_says_the_same(textures, tmp_path):
    options = dict(heldout=0, size=32, mode="pad", tally=Tally(), look_up=_look_up)
    told = [
        [
            e.caption
            for e in _records(
                stellarium.convert(textures, tmp_path / name, seed=seed, **options)[0].folder
            )
        ]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("shown", [RING, GALAXY])
def test_every_sentence_is_whole(shown):
    for seed in range(200):
        chance = random.Random(seed)
        dialogue = stellarium_words.dialogue(shown, 60.0, chance)
        texts = [stellarium_words.caption(shown, 60.0, chance), *(turn.text for turn in dialogue)]
        for text in texts:
            assert re.fullmatch(r"([A-Z][^{}]*[a-z0-9E)])[.?]", text), text
            assert not re.search(r"  |None|\ba [aeiou]|\ban [^aeiou]|about 1 \w+s\b", text), text
        assert [turn.role for turn in dialogue] == ["human", "assistant"] * (len(dialogue) // 2)
        questions = [turn.text for turn in dialogue[::2]]
        assert len(set(questions)) == len(questions) and 3 <= len(questions) <= 5


def test_angles_by_hand():
    for arcmin, text in {
        (1.27,): "1.3 arcminutes",
        (13.71, 11.67): "13.7 by 11.7 arcminutes",
        (177.83, 69.66): "3 by 1.2 degrees",
        (60.0, 60.0): "1 degree",
        (0.25, 0.2): "15 by 12 arcseconds",
        (): "",
    }.items():
        assert stellarium_words._angles(arcmin) == text


def test_a_folder_that_is_not_stellariums_is_named(tmp_path, capsys):
    arguments = ["--textures", str(tmp_path), "--out", str(tmp_path / "out")]
    assert stellarium.main(arguments) == 2
    assert "nebulae/default" in capsys.readouterr().err
    (tmp_path / "textures.json").write_text('{"subTiles": 5')
    assert stellarium.main(arguments) == 2
    assert "not a list of textures" in capsys.readouterr().err


def test_facts_of_openngc():
    pytest.importorskip("pyongc", reason="needs pyongc (the data extra)")
    ring = openngc.look_up("M", 57)
    assert ring is not None
    assert (ring.key, ring.designation, ring.also) == ("NGC6720", "M57", "NGC 6720")
    assert (ring.common_name, ring.kind, ring.constellation) == (
        "the Ring Nebula",
        "planetary nebula",
        "Lyra",
    )
    assert (ring.magnitude, ring.velocity, ring.size_arcmin) == (8.8, None, (1.27,))
    whirlpool = openngc.look_up("NGC", 5194)
    assert whirlpool is not None
    assert (whirlpool.designation, whirlpool.hubble, whirlpool.velocity) == ("M51", "SABb", 465)
    assert whirlpool.kind == "weakly barred spiral galaxy"
    assert openngc.look_up("NGC", 4170) is None  # a star
    assert openngc.look_up("NGC", 99999) is None


@pytest.mark.parametrize(
    "catalogue, number, name",
    [
        ("NGC", 5128, "Centaurus A"),
        ("M", 81, "Bode's Galaxy"),
        ("NGC", 6543, "the Cat's Eye Nebula"),
        ("NGC", 4038, "one of the Antennae Galaxies"),
        ("NGC", 104, ""),  # 47 Tuc Cluster: shorthand
        ("IC", 434, ""),  # the Flame Nebula is its neighbour
        ("M", 11, "the Wild Duck Cluster"),
    ],
)
def test_common_names_read_well(catalogue, number, name):
    pytest.importorskip("pyongc", reason="needs pyongc (the data extra)")
    found = openngc.look_up(catalogue, number)
    assert found is not None and found.common_name == name
