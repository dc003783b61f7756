"""Models and pictures that cannot be read, refused at the door: what was looked for, what to do."""

import json
import re
import shutil

import tiny_directories as tiny
import tiny_records


def test_a_missing_model(folder, refused):
    for argv in (
        ("train", folder / "run.yaml", "--init.model", folder / "none"),
        ("ask", folder / "none", "What is this?"),
        ("convert", folder / "none", folder / "out", "--layout", "hf"),
    ):
        assert f"{folder}/none: expected the directory of a model, found none" in refused(*argv)


def test_a_model_of_unknown_layout(folder, refused, tmp_path):
    said = refused("ask", folder / "grey", "What is this?")
    assert f"{folder}/grey: unknown layout. Looked for" in said
    assert re.search(r"found .*dataset_info\.json", said)
    tiny.write_json(tmp_path, "config.json", {"model_type": "whisper"})
    said = refused("train", folder / "run.yaml", "--init.model", tmp_path)
    assert "found model_type 'whisper' in config.json" in said
    assert "--vision DIR --llm DIR" in refused("ask", folder / "llm", "What is this?")


def test_a_tokenizer_of_another_model(folder, refused, tmp_path):
    shutil.copytree(folder / "hf", tmp_path / "hf")
    words = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids |= {f"word{number}": tiny.IMAGE_ID + number for number in range(9)}
    ids |= {"<image>": 70, "<pad>": 71}
    for token in words["added_tokens"]:
        token["id"] = ids[token["content"]]
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(words))
    said = refused("train", folder / "run.yaml", "--init.model", tmp_path / "hf")
    assert f"{tmp_path}/hf: the tokenizer does not fit the model: it has 70 words" in said
    assert "the embedding 64 rows" in said
    assert f"{tmp_path}/hf: the tokenizer does not fit" in refused("ask", tmp_path / "hf", "What?")


def test_a_picture_that_is_none(folder, refused):
    argv = ("ask", folder / "hf", "What is this?", "--image")
    assert f"{folder}/none.png: no such file or directory" in refused(*argv, folder / "none.png")
    assert f"{folder}/grey: is a directory" in refused(*argv, folder / "grey")
    broken = folder / "broken.png"
    broken.write_bytes(tiny_records.picture(7)[:40])
    assert f"{broken}: cannot decode this picture of 40 bytes" in refused(*argv, broken)


def test_a_question_longer_than_the_model_s_positions(folder, refused):
    said = refused("ask", folder / "hf", "what " * 300)
    assert "positions with its 0 picture(s), but the model has 256" in said


def test_what_convert_refuses(folder, refused):
    there, gone = folder / "grey", folder / "gone"
    said = refused("convert", folder / "hf", there, "--layout", "hf")
    assert f"{there} exists: choose another name, or remove it first" in said
    assert "invalid choice: 'gguf'" in refused("convert", folder / "hf", gone, "--layout", "gguf")
    assert "expected SRC DST, or DST alone with --vision and --llm" in refused(
        "convert", folder / "hf", "--layout", "hf"
    )
    assert f"has a decoder of its own, so that --llm {folder}/llm has no place" in refused(
        "convert", folder / "hf", "--llm", folder / "llm", gone, "--layout", "hf"
    )
    said = refused("convert", "--vision", folder / "llm", "--llm", folder / "llm", gone,
                   "--layout", "hf")  # fmt: skip
    assert f"{folder}/llm: expected the directory of a vision tower, found a bare decoder" in said
    assert not gone.exists()
