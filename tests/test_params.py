"""Addresses, and the table that gives each exactly one row."""

import pytest

from astrollava_jax import params

ADDRESSES = ["llm/embed/embedding", "llm/layers/attn/q_proj/kernel", "projector/layers_0/bias"]


def test_each_address_gets_its_row():
    found = params.assign([("llm/.*", "slow"), ("projector/.*", "fast")], ADDRESSES)
    assert found == dict(zip(ADDRESSES, ["slow", "slow", "fast"]))


def test_uncovered_doubly_covered_and_idle_rows_are_told_together():
    rows = [("llm/.*", "a"), (".*embedding", "b"), ("llm/layers/0/.*", "c"), ("vision/.*", "d")]
    with pytest.raises(ValueError) as error:
        params.assign(rows, ADDRESSES)
    message = str(error.value)
    assert "projector/layers_0/bias: matched by no row" in message
    assert "llm/embed/embedding: matched by 'llm/.*', '.*embedding'" in message
    assert "'vision/.*': matches no parameter" in message
    assert "'llm/layers/0/.*'" in message and "has no layer number" in message


def test_a_pattern_matches_the_whole_address():
    assert params.select(["llm/layers/.*"], ADDRESSES) == ["llm/layers/attn/q_proj/kernel"]
    with pytest.raises(ValueError, match="matches no parameter"):
        params.select(["layers"], ADDRESSES)
