"""A whole run that is traced: the names of the model's parts stand in what the profiler wrote."""

import json
import re

import pytest
import small_run

from astrollava_jax.cli.main import main

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PARTS = (
    "vision layers attn attention",
    "vision layers mlp",
    "projector",
    "llm layers attn attention",
    "llm layers mlp",
    "loss",
    "update",
)


def scopes(trace: bytes) -> set[str]:
    """The scopes of the step's operations, from the outermost to the innermost."""
    known = {word for part in PARTS for word in part.split()}
    names = re.findall(rb"jit\(step\)(/[\w()/]+)/", trace)
    words = (re.findall(r"\w+", name.decode()) for name in set(names))
    return {" ".join(word for word in name if word in known) for name in words}


def test_a_trace_of_two_steps_names_the_parts_of_the_model(sky, tmp_path, monkeypatch, capsys):
    small_run.on_devices(monkeypatch, 1)
    file = small_run.run_file(sky, 1, small_run.fresh_projector(sky / "base"), tmp_path / "traced")
    out = tmp_path / "traced"
    words = ["train", file, "--steps", "4", "--evaluate", "null", "--log.every_steps", "1"]
    assert main([*words, "--profile", "2:3"]) == 0
    (trace,) = (out / "profile" / "process_0").rglob("*.xplane.pb")
    found = scopes(trace.read_bytes())
    assert set(PARTS) <= found
    printed = capsys.readouterr().out
    assert f"profile 2:3: 2 of 2 steps traced, in {out}/profile/process_0" in printed

    # The same run says what its time was spent on, and that it is traced no more.
    facts = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(0 <= line["input_wait"] + line["device_wait"] <= 1 for line in facts)
    assert facts[3]["checkpoint_seconds"] > 0
    assert facts[0]["began"] < facts[0]["time"] < facts[1]["time"]
    assert "goodput" in printed.splitlines()[-2]
    assert main([*words, "--profile", "2:3"]) == 0
    assert "profile 2:3: nothing will be traced, all is done" in capsys.readouterr().out
