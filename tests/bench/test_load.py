"""The bench of loading: a very small model by all ways, and that it sees other numbers."""

import numpy as np
import pytest

from astrollava_jax import files
from astrollava_jax.bench import load, random_llava, whole_model


def loaded(total=100.0, parameters=7, seconds=2.0):
    return {
        "sum": total, "parameters": parameters, "seconds": seconds,
        "processor_seconds": seconds / 2, "held_gb": 0.5, "resident_gb": 0.75,
    }  # fmt: skip


@pytest.mark.slow
def test_all_ways_lead_to_the_same_numbers(tmp_path, capsys):
    assert load.main(["--work", str(tmp_path), "--shape", "tiny", "--turns", "1"]) == 0
    said = capsys.readouterr().out
    assert "train, stage 1: ready in" in said and "first step" in said
    summary = files.read_json_object(tmp_path / "load.json")
    assert set(summary["turns"]) == set(load.WAYS) and summary["faults"] == []
    counts = {turns[0]["parameters"] for turns in summary["turns"].values()}
    assert len(counts) == 1 and summary["gb"] > 4 * counts.pop() / 1e9


def test_every_page_is_read():
    pages = np.zeros((4, whole_model.PAGE // 4), np.float32)
    pages[:, 0] = np.frombuffer(b"\1\0\0\0", np.float32)
    assert whole_model.touch([pages, pages[:2]]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("program", whole_model.PROGRAMS)
def test_on_a_cpu_both_programs_read_all_inside_the_clock(program, tmp_path, monkeypatch):
    random_llava.write(tmp_path / "model", random_llava.TINY)
    order, touch, took = [], whole_model.touch, whole_model._took
    seen = []

    def touched(arrays):
        order.append("touched")
        arrays = list(arrays)
        seen.append(sum(array.nbytes for array in arrays))
        return touch(arrays)

    monkeypatch.setattr(whole_model, "touch", touched)
    monkeypatch.setattr(whole_model, "_took", lambda *times: order.append("took") or took(*times))
    facts = whole_model.PROGRAMS[program](str(tmp_path / "model"))
    assert order == ["touched", "took"] and seen == [2 * facts["parameters"]]


def test_other_numbers_are_told():
    ways = {"transformers": [loaded()], "ours, hf": [loaded(100.05)]}
    assert load.faults(ways) == []
    assert load.faults(ways | {"ours, hf": [loaded(101.0)]}) == [
        "ours, hf: expected 7 numbers with the sum 100, found 7 with 101"
    ]
    assert len(load.faults(ways | {"ours, hf": [loaded(parameters=6)]})) == 1
    assert len(load.faults(ways | {"ours, hf": [loaded(float("nan"))]})) == 1


def test_the_table_has_the_median_of_the_turns():
    lines = load.told({"ours, hf": [loaded(seconds=s) for s in (2.0, 9.0, 4.0)]}, 1.5)
    assert lines[1].split("hf")[1].split() == [
        "2.000", "(1.000", "to", "4.500)", "4.000", "(2.000", "to", "9.000)", "0.50", "(0.75)",
    ]  # fmt: skip
    assert lines[-1] == "the files have 1.50 GB"
