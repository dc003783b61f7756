"""The numbers that a stage begins with, in several processes: all have theirs, then all look."""

import pytest
import small_run
from rich.console import Console

from astrollava_jax.run import initial
from astrollava_jax.run.ready import get_ready
from astrollava_jax.sharding import PeerFailed


def test_who_could_not_read_its_part_says_so_before_the_others_compute(stage1, monkeypatch):
    """A process that had ended by then would leave those that compute waiting for it."""
    run = small_run.read_run(stage1.file)
    ready = get_ready(Console(quiet=True), run, (), keep=False)
    order: list[str] = []
    monkeypatch.setattr(initial, "read_params", lambda *_: order.append("read") or {})
    monkeypatch.setattr(initial, "gather", lambda _: order.append("met"))
    monkeypatch.setattr(initial, "_counted", lambda params: order.append("computed") or {})
    assert initial.read(run, ready.opened, ready.stage, []) == {}
    assert order == ["read", "met", "computed"]

    def failed(_):
        raise PeerFailed("process 1 has ended: its disk is gone")

    monkeypatch.setattr(initial, "gather", failed)
    with pytest.raises(PeerFailed, match="its disk is gone"):
        initial.read(run, ready.opened, ready.stage, [])
    assert order[3:] == ["read"]
