"""The way to the first step: compiled beside the weights, kept for the next start, told."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import small_run

from astrollava_jax.models.remat import REMAT
from astrollava_jax.run import ready
from astrollava_jax.run.ahead import Ahead, told
from astrollava_jax.run.train import train

ROOT = Path(__file__).parents[2]
PARTS = ["open", "weights", "compile", "first_step"]


@pytest.mark.usefixtures("quickly_compiled")
def test_a_step_compiled_ahead_computes_the_same_bits(stage2, tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "ahead", lambda stage, *_: stage)
    train(small_run.read_run(stage2.file, out=str(tmp_path / "out")))
    assert small_run.curve(tmp_path / "out") == small_run.curve(stage2.out)
    assert small_run.held_out(tmp_path / "out") == small_run.held_out(stage2.out)


def test_an_option_that_the_compiler_does_not_know_is_the_users_mistake(stage1, tmp_path):
    run = small_run.read_run(stage1.file, out=str(tmp_path / "out"))
    run = dataclasses.replace(run, compiler_options={"xla_of_the_run": 1})
    with pytest.raises(ValueError, match=r"compiler_options\.xla_of_the_run: the compiler"):
        train(run)


def test_the_first_line_of_an_attempt_tells_what_it_waited_for(stage1):
    lines = [json.loads(line) for line in (stage1.out / "log.jsonl").read_text().splitlines()]
    steps = [facts for facts in lines if "loss" in facts]
    assert list(steps[0]["start_seconds"]) == PARTS
    assert all(seconds >= 0 for seconds in steps[0]["start_seconds"].values())
    assert not any("start_seconds" in facts for facts in steps[1:])
    assert steps[0]["remat"] in REMAT and "remat" not in steps[1]


def test_what_was_waited_for_is_told_in_a_line():
    parts = dict(zip(PARTS, (3.04, 20.0, 15.0, 3.0)))
    assert told(parts) == "ready in 41.0 s: open 3.0, weights 20.0, compile 15.0, first step 3.0"


def test_others_go_on_while_it_is_compiled_and_the_first_step_waits():
    may_end, lines = threading.Event(), []

    def compiled():
        assert may_end.wait(60)
        return lambda x: x + 1

    ahead = Ahead(compiled, 0.0, lines.append)
    assert not ahead.parts and not lines, "it is not compiled, and nobody waits"
    may_end.set()
    assert [ahead(1), ahead(2)] == [2, 3]
    assert list(ahead.parts) == PARTS and lines == [told(ahead.parts)]


def test_what_the_compilation_ends_with_is_raised_where_the_step_is_needed():
    def compiled():
        raise ValueError("it does not fit")

    ahead = Ahead(compiled, 0.0, print)
    with pytest.raises(ValueError, match="it does not fit"):
        ahead(1)


COMPILE = """
import jax, jax.numpy as jnp
from astrollava_jax.run.compiled import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(keep_compiled())
jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits))
"""


def kept(**environment: str) -> tuple[str, int]:
    """In a process of its own: the folder that programs are kept in, and how many it found."""
    mine = {key: value for key, value in os.environ.items() if "COMPILE_CACHE" not in key}
    mine["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True, text=True, cwd=ROOT, env=mine | environment,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder, hits = done.stdout.split()
    return folder, int(hits)


def test_programs_are_found_again_in_the_users_caches(tmp_path):
    folder, hits = kept(XDG_CACHE_HOME=str(tmp_path))
    assert Path(folder).parent == tmp_path / "astrollava_jax" / "xla" and hits == 0
    assert any(Path(folder).iterdir())
    again, hits = kept(XDG_CACHE_HOME=str(tmp_path))
    assert again == folder and hits > 0
    home, hits = kept(XDG_CACHE_HOME="", HOME=str(tmp_path / "home"))
    assert home.startswith(str(tmp_path / "home" / ".cache" / "astrollava_jax")) and hits == 0


def test_the_user_says_where_or_that_nothing_is_kept(tmp_path):
    folder, _ = kept(ASTROLLAVA_COMPILE_CACHE=str(tmp_path / "mine"))
    assert Path(folder).parent == tmp_path / "mine"
    own = str(tmp_path / "jax")
    assert kept(JAX_COMPILATION_CACHE_DIR=own)[0] == own
    assert kept(ASTROLLAVA_COMPILE_CACHE="off", HOME=str(tmp_path)) == ("None", 0)
    assert not (tmp_path / ".cache").exists()
    (tmp_path / "a file").touch()
    assert kept(ASTROLLAVA_COMPILE_CACHE=str(tmp_path / "a file")) == ("None", 0)
