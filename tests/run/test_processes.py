"""Which errors come of another process's end: their run goes on when it is started again."""

import pytest
from jax.errors import JaxRuntimeError

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


# What jaxlib 0.10.2 raised where one of two processes was killed.
@pytest.mark.parametrize(
    "error",
    [
        ValueError(
            "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
            "Connection closed by peer [127.0.0.1]:4295"
        ),
        JaxRuntimeError(
            "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read "
            "error [127.0.0.1]:42120: Connection reset by peer"
        ),
        JaxRuntimeError(
            "DEADLINE_EXCEEDED: Barrier timed out. Id: b::0. This usually happens because a task "
            "triggered the barrier too early or too slowly."
        ),
        JaxRuntimeError(
            "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
            "preempted/died/restarted unexpectedly or this task is experiencing network issues."
        ),
        save_failed(JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out with key: b")),
        save_failed(TimeoutError("Timeout waiting at barrier 'save_and_finalize_2'")),
    ],
)
def test_another_process_is_gone(error, monkeypatch):
    with pytest.raises(processes.PeerGone, match="another process of this run has ended or hangs"):
        of_many(monkeypatch, error)


@pytest.mark.parametrize(
    "error",
    [
        JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        JaxRuntimeError("INTERNAL: a barrier in the compiled program is unavailable"),
        save_failed(OSError(28, "No space left on device")),
        save_failed(ConnectionResetError(104, "Connection reset by peer")),
        ValueError("batch.length is 8"),
        ValueError("UNAVAILABLE is no config of ours; neither is gloo"),
    ],
)
def test_its_own_mistakes_stay_its_own(error, monkeypatch):
    with pytest.raises(type(error)) as raised:
        of_many(monkeypatch, error)
    assert raised.value is error
