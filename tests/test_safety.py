"""What comes from strangers is read, never run; what they name never becomes a path."""

import ast
import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import astrollava_jax
from astrollava_jax import config
from astrollava_jax.data import chat_jinja
from astrollava_jax.data.example import Example, Turn, decode
from astrollava_jax.data.lengths import _read
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.report import Card, Page
from astrollava_jax.run.config import RunConfig
from astrollava_jax.weights.safetensors import SafetensorsFile
from astrollava_jax.weights.torch_file import TorchFile
from data_prep import llava_json

PACKAGE = Path(astrollava_jax.__file__).parent


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# Pickles


def zip_of_torch(trap: Trap) -> bytes:
    content = io.BytesIO()
    torch.save({"w": torch.zeros(2), "x": trap}, content)
    return content.getvalue()


def old_file_of_torch(trap: Trap) -> bytes:
    content = io.BytesIO()
    torch.save({"x": trap}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def bare_pickle(trap: Trap) -> bytes:
    return pickle.dumps({"x": trap})


def numpys_archive(trap: Trap) -> bytes:
    content = io.BytesIO()
    objects = np.array([trap], object)
    names = ("tokens", "images", "learned", "whole", "faults")
    columns: dict[str, Any] = dict.fromkeys(names, objects)
    np.savez(content, **columns)
    return content.getvalue()


PICKLES = (zip_of_torch, old_file_of_torch, bare_pickle, numpys_archive)


@pytest.mark.parametrize("make", PICKLES)
def test_a_pickle_is_not_run(make, tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(make(Trap(sprung)))
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: .*nothing of it was run|tensors only"
    ):
        TorchFile(str(path))
    with pytest.raises(ValueError, match=r"pytorch_model.bin"):
        SafetensorsFile(str(path))
    assert _read(str(path)) is None, "measured again"
    assert not sprung.exists()
    if make is not numpys_archive:  # the trap is one: whoever loads it freely springs it
        with contextlib.suppress(RuntimeError):
            torch.load(path, weights_only=False)
        assert sprung.exists()


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_pickle_is_no_tokenizer(name, tmp_path):
    sprung = tmp_path / "sprung"
    (tmp_path / name).write_bytes(bare_pickle(Trap(sprung)))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_folder(tmp_path)
    assert not sprung.exists()


def test_yaml_makes_no_objects(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "run.yaml"
    path.write_text(f"out: !!python/object/apply:os.mkdir [{sprung}]\n")
    with pytest.raises(ValueError, match=r"run\.yaml"):
        config.load(RunConfig, str(path))
    assert not sprung.exists()


LOADERS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "code")
CALLS = ("eval", "exec", "compile", "__import__", "system", "popen", "check_output", "run_path")


def test_nothing_in_the_package_can_run_what_it_reads():
    faults = []
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "data_prep").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            faults += [f"{path}: imports {name}" for name in names if name in LOADERS]
            if not isinstance(node, ast.Call):
                continue
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if called in CALLS or (called.startswith("os.") and called[3:] in CALLS):
                faults.append(f"{path}:{node.lineno} calls {called}")
            if {"True"} & {options.get("allow_pickle"), options.get("trust_remote_code")}:
                faults.append(f"{path}:{node.lineno} trusts a file")
            if options.get("weights_only", "True") != "True":
                faults.append(f"{path}:{node.lineno} unpickles")
            if called == "yaml.load" and options.get("Loader") != "_Loader":
                faults.append(f"{path}:{node.lineno} loads YAML without the safe loader")
    assert not faults, "\n".join(faults)
    loads = [p.name for p in PACKAGE.rglob("*.py") if "torch.load(" in p.read_text()]
    assert loads == ["torch_file.py"]


# Chat templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].mkdir('sprung') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='no') }}",
        "{% include 'file' %}",
        "{% import '/etc/passwd' as passwd %}",
        "{% for number in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_reaches_nothing_outside(template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as refused:
        chat_jinja._compile(template).render(messages=[{"role": "user", "content": "a"}])
    assert type(refused.value).__module__.startswith("jinja2") or isinstance(
        refused.value, OverflowError | ZeroDivisionError | TypeError
    )
    assert not chat_jinja.takes_pictures(template)
    assert not list(tmp_path.iterdir())


# Names from data

NAMES = (
    *("../../escaped", "/tmp/escaped", "a/b", "..", "CON", "-rf", "$(touch escaped)", "a\nb"),
    *(
        "a\0b",
        "\x1b[2J",
        "\u202egnp.exe",
        "x" * 300,
        "'; DROP TABLE sky; --",
        "~",
        "%2e%2e%2f",
        "*",
    ),
)


def test_names_of_records_stay_inside_the_records(tmp_path):
    """Whatever they are: they become no file name, and come back as they were."""
    inside = tmp_path / "inside"
    inside.mkdir()
    sky = [Example(name, turns=(Turn("human", "?"),), source=name, url=name) for name in NAMES]
    write_set(inside / "set", sky, name="sky", split="train")
    source = TFRecordSource(inside / "set")
    assert [decode(source[number]) for number in range(len(source))] == sky
    names = {path.name for path in tmp_path.rglob("*")} - {"inside", "set"}
    assert names == {
        *("sky-train.tfrecord-00000-of-00001", "sky-train.tfrecord-00000-of-00001.idx"),
        *("dataset_info.json", "features.json", "checksums.json"),
    }


@pytest.mark.parametrize("what", ["name", "split"])
@pytest.mark.parametrize("name", ["../up", "a/b", "", "a b", "a\0", "."])
def test_a_set_is_named_by_identifiers(what, name, tmp_path):
    names: dict[str, Any] = {"name": "sky", "split": "train", what: name}
    with pytest.raises(ValueError, match=f"expected {what} to be letters"):
        write_set(tmp_path / "set", [Example("one", caption="a")], **names)
    assert not list(tmp_path.iterdir())


def test_images_that_json_names_are_read_from_their_folder_only(tmp_path, capsys):
    """Links inside the folder are the user's own, and are followed."""
    (images := tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    Image.new("RGB", (4, 4)).save(images / "fine.png")
    named = ["../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", "a\0.png"]
    named += ["x" * 300 + ".png", "\x1b[2J.png", "fine.png"]
    samples = [{"id": name, "image": name, "caption": "a"} for name in named]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    out = ["--out", str(tmp_path / "out"), "--images", str(images)]
    assert llava_json.main(["--json", str(tmp_path / "samples.json"), *out]) == 0
    told = capsys.readouterr().out
    assert "out of the folder" in told and "does not start from the folder" in told
    assert "\x1b" not in told and "\0" not in told
    assert TFRecordSource(tmp_path / "out" / "train").__len__() == 1


def test_a_report_shows_any_text_and_runs_none(tmp_path):
    evil = "</dd><script>fetch('//evil')</script><img src=x onerror=alert(1)>\0\x1b[2J\u202e"
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    page = Page(evil).section(evil).text(evil).table([evil], [[evil]])
    page.picture_cards([Card(png.getvalue(), evil, evil)]).write(str(tmp_path / "report.html"))
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html and "<img src=x" not in html
    assert "default-src 'none'" in html, "not even what a defect of ours would let through"


def test_an_archive_inside_a_torch_file_writes_no_files(tmp_path):
    """A zip can name entries that lie outside; nobody unpacks them."""
    path = tmp_path / "inside" / "mm_projector.bin"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped", "out")
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(ValueError, match=r"mm_projector\.bin"):
        TorchFile(str(path))
    assert {p.name for p in tmp_path.rglob("*")} == {"inside", "mm_projector.bin"}
