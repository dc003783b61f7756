"""The speed of a ring over a slice, and who takes part in a collective."""

import pytest

from astrollava_jax.planning.network import exchange_seconds, group_size, ring_of, ring_speed
from astrollava_jax.planning.topologies import CHIPS, topology


@pytest.mark.parametrize(
    ("chip", "sides", "closed", "gigabytes"),
    [
        ("v5e", (2, 4), False, 93),
        ("v5e", (8, 8), False, 93),
        ("v5e", (16, 16), True, 186),
        ("v6e", (2, 4), False, 186),
        ("v6e", (16, 16), True, 372),
        ("v5e", None, False, 93),
        ("v4", (2, 2, 1), False, 93),
        ("v4", (4, 4, 4), True, 279),
        ("v5e", (4, 1), False, 93),  # along one axis both ways are free
        ("v5e", (1, 1), False, 0),
    ],
)
def test_a_ring_is_as_fast_as_the_axes_of_the_slice_let_it_be(chip, sides, closed, gigabytes):
    assert ring_speed(CHIPS[chip], sides, closed) == pytest.approx(gigabytes * 1e9)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("v5e-16", 93),
        ("v5e-128", 93),  # closed along one of its two axes
        ("v5e-256", 186),
        ("v6e-8", 186),
        ("v4-8", 93),
        ("v5p-8", 186),
        ("v5p-128", 558),
    ],
)
def test_a_machine_of_the_table_has_the_ring_of_its_slice(name, gigabytes):
    assert ring_of(topology(name)) == pytest.approx(gigabytes * 1e9)


def test_a_gather_over_sixteen_chips_of_v5e_takes_what_the_ring_needs_for_the_other_fifteen():
    ring = ring_speed(CHIPS["v5e"], (4, 4))
    size = 16384 * 4096 * 2
    gather = exchange_seconds("all-gather", size, 16, ring)
    assert gather == pytest.approx(size * 15 / 16 / 93e9 + 15e-6)
    assert exchange_seconds("all-reduce", size, 16, ring) == pytest.approx(2 * gather)
    assert exchange_seconds("all-gather", size, 1, ring) == 0


def test_a_permute_sends_all_of_it_over_one_link():
    assert exchange_seconds("collective-permute", 93_000, 2, 46.5e9) == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=[1,8]<=[8]", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0':(2)2}", 2),
        ("replica_groups=anew", None),
        ("no groups", None),
    ],
)
def test_the_groups_of_a_collective_are_read_in_each_way_that_they_are_written(groups, size):
    line = f"%g = f32[8] all-gather(%a), channel_id=1, {groups}, dimensions={{0}}"
    assert group_size(line, 8) == size
