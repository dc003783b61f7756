"""Which errors come of another process's end: their run goes on when it is started again."""

import jax
import pytest

from astrollava_jax.run import processes
from astrollava_jax.training.checkpoint import SaveFailed


def of_many(monkeypatch, error: Exception) -> None:
    """Raises an error in one process of several."""
    monkeypatch.setattr(processes, "_initialize", lambda bound: True)
    with processes.joined(10.0):
        raise error


def save_failed(cause: Exception) -> SaveFailed:
    error = SaveFailed("checkpoints/12: this checkpoint could not be saved; mend the storage")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout"),
        save_failed(TimeoutError("Timeout waiting at barrier 'save_and_finalize_2'")),
    ],
)
def test_another_process_is_gone(error, monkeypatch):
    with pytest.raises(processes.PeerGone, match="another process of this run has ended or hangs"):
        of_many(monkeypatch, error)


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        save_failed(OSError(28, "No space left on device")),
        ValueError("batch.length is 8"),
    ],
)
def test_its_own_mistakes_stay_its_own(error, monkeypatch):
    with pytest.raises(type(error)) as raised:
        of_many(monkeypatch, error)
    assert raised.value is error
