"""`launch/outlives.py`: what of a run would vanish with its machine."""

import dataclasses
import importlib.util

import pytest
from machines import ROOT

from astrollava_jax.config import plain
from astrollava_jax.run.config import EvaluateConfig, InitConfig, with_absolute_paths

SPEC = importlib.util.spec_from_file_location("outlives", ROOT / "launch" / "outlives.py")
assert SPEC is not None and SPEC.loader is not None
outlives = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(outlives)

FILE = str(ROOT / "configs" / "stage1_align.yaml")


def test_relative_paths_are_below_the_folder_of_work(capsys):
    assert outlives.main(["/bucket", "/bucket/mine", FILE]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  out: /bucket/mine/runs/stage1_align",
        "  init.vision: /bucket/mine/models/clip-vit-large-patch14-336",
        "  init.llm: /bucket/mine/models/vicuna-7b-v1.5",
        "  data.0.records: /bucket/mine/data/llava_pretrain/train",
    ]


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--out", "/tmp/run"], "out: expected a path below /bucket"),
        (["--out", "/bucket2/run"], "found /bucket2/run"),
        (["--out", "../../home/run"], "found /home/run"),
        (["--init.vision", "/models/clip"], "or give --init.vision PATH after it"),
        (["--data.0.records", "/mnt/disk/records"], "data.0.records: expected"),
        (["--evaluate", "{records: /mnt/x, every_steps: 5}"], "evaluate.records: expected"),
        (["--base", "/models/llava"], "or give --base PATH after it"),
        (["--bacth.samples", "5"], "bacth: unknown key; did you mean 'batch'?"),
    ],
)
def test_what_would_vanish_is_named(words, wanted, capsys):
    assert outlives.main(["/bucket", "/bucket", FILE, *words]) == 2
    assert wanted in capsys.readouterr().err


def test_several_faults_are_told_together(capsys):
    assert outlives.main(["/bucket", "/bucket", FILE, "--out", "/a", "--init.llm", "/b"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_folder_of_work_beside_the_storage_is_refused(capsys):
    assert outlives.main(["/bucket", "/home/me", FILE]) == 2
    assert "--work: expected a folder below /bucket (--storage), found /home/me" in (
        capsys.readouterr().err
    )


def test_no_path_of_a_run_is_forgotten(monkeypatch, tmp_path):
    """Those are meant that `train` takes relative to its working directory."""
    run = outlives.read_run(FILE, {})
    every = InitConfig(**dict.fromkeys(("model", "vision", "llm", "base"), "m"))
    run = dataclasses.replace(run, init=every, evaluate=EvaluateConfig(records="r", every_steps=1))
    monkeypatch.setattr(outlives, "read_run", lambda *_: run)
    monkeypatch.chdir(tmp_path)
    before, after = leaves(plain(run)), leaves(plain(with_absolute_paths(run)))
    changed = {key for key in before if before[key] != after[key]}
    assert set(outlives.paths([FILE])) == changed


def leaves(tree, name=""):
    """Dotted key -> value of a tree of mappings and lists."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        found = {}
        for key, value in pairs:
            found |= leaves(value, f"{name}.{key}".removeprefix("."))
        return found
    return {name: tree}
