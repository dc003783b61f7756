"""How long a save may take: a day, as a disk may be slow, and the watchdog ends what hangs."""

import itertools
from types import SimpleNamespace

import pytest
from orbax.checkpoint import v1 as ocp

from astrollava_jax.training import manifest, writing

HOUR = 3600.0


@pytest.fixture
def hours(monkeypatch) -> list[float]:
    """Every look at the manifests of the others takes an hour."""
    clock = itertools.count(0.0, HOUR)
    looked: list[float] = []
    monkeypatch.setattr(
        manifest, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=looked.append)
    )
    return looked


def test_a_peer_that_is_slow_with_its_part_is_waited_for(hours, tmp_path, monkeypatch):
    own, both = ["manifest.0-of-2.json"], ["manifest.0-of-2.json", "manifest.1-of-2.json"]
    monkeypatch.setattr(manifest, "parts", lambda path: both if len(hours) > 22 else own)
    manifest.await_parts(str(tmp_path), 2)
    assert len(hours) == 23


def test_and_not_forever(hours, tmp_path):
    with pytest.raises(TimeoutError, match="expected 2 parts, found"):
        manifest.await_parts(str(tmp_path), 2)
    assert 23 <= len(hours) <= 25


def test_orbax_waits_as_long_as_its_own_processes_do(tmp_path, monkeypatch):
    begun = []

    class Context(ocp.Context):
        def __enter__(self):
            begun.append(self.async_options.timeout_secs)
            return super().__enter__()

    monkeypatch.setattr(writing, "ocp", SimpleNamespace(
        Context=Context, save_checkpointables_async=lambda *_, **__: None
    ))  # fmt: skip
    writing.begin(str(tmp_path / "1"), {}, {})
    assert begun == [24 * HOUR]
