"""The table of machines: names as their maker gives them, and what stands behind each."""

import math

import pytest

from astrollava_jax.planning.topologies import CHIPS, TOPOLOGIES, topology


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_name_tells_how_many_chips_there_are(name):
    kind, number = name.split("-")
    found = topology(name)
    cores = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}[kind]  # that the name counts, of each chip
    assert found.chips * cores == int(number)
    described, bounds = found.topology_name.split(":")
    assert described == kind
    assert math.prod(map(int, bounds.split("x"))) == found.chips
    assert found.chip is CHIPS[kind]


def test_only_whole_tori_are_closed():
    closed = {name: found.wrap for name, found in TOPOLOGIES.items() if any(found.wrap)}
    flat = {"128": (False, True, False), "256": (True, True, False)}
    assert {name: wrap for name, wrap in closed.items() if name[:3] in ("v5e", "v6e")} == {
        f"{kind}-{number}": wrap for kind in ("v5e", "v6e") for number, wrap in flat.items()
    }
    cubic = [name for name in closed if name[:3] in ("v4-", "v5p")]
    assert cubic == [
        f"{kind}-{number}" for kind in ("v4", "v5p") for number in (128, 256, 512, 1024)
    ]
    assert all(closed[name] == (True, True, True) for name in cubic)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError) as told:
        topology("v5e-12")
    said = str(told.value)
    assert "'v5e-12' is no known topology; did you mean 'v5e-1" in said
    assert "v5e-N with N = 1, 4, 8, 16, 32, 64, 128, 256 (chips)" in said
    assert "v5p-N with N = 8, 16, 32, 64, 128, 256, 512, 1024 (cores)" in said
