"""Who may ask a run to stop, in one process: signals, a file, the cloud."""

import contextlib
import http.client
import http.server
import os
import signal
import threading
import time
import urllib.request

import pytest

from astrollava_jax.training import preemption
from astrollava_jax.training.preemption import PreemptionConfig, Stop

QUIET = PreemptionConfig(cloud=None, every_seconds=0.01)


def reason_of(stop: Stop) -> str | None:
    """Why, once it is known."""
    end = time.monotonic() + 10
    while stop.reason is None and time.monotonic() < end:
        time.sleep(0.01)
    return stop.requested()


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_interrupts_nothing(number):
    before = signal.getsignal(number)
    with Stop(QUIET) as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), number)
        assert reason_of(stop) == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_unless_it_is_the_same(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(preemption, "AGAIN_SECONDS", 0.2)
    with Stop(QUIET):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert not ended
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert ended == [75]


def test_what_nohup_ignores_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop(QUIET) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested() is None
    signal.signal(signal.SIGHUP, before)


def test_a_notice_file_asks_when_it_appears_or_changes(tmp_path):
    notice = tmp_path / "notice"
    config = PreemptionConfig(notice_file=str(notice), cloud=None, every_seconds=0.01)
    with Stop(config) as stop:
        time.sleep(0.05)
        assert stop.requested() is None
        notice.touch()
        assert reason_of(stop) == f"{notice} announces it"
    with Stop(config) as stop:  # it is of the last time
        time.sleep(0.05)
        assert stop.requested() is None
        os.utime(notice, (1e9, 1e9))
        assert reason_of(stop) == f"{notice} announces it"


def test_a_notice_that_appears_while_the_run_gets_ready_asks(tmp_path):
    notice = tmp_path / "notice"
    made = Stop(PreemptionConfig(notice_file=str(notice), cloud=None, every_seconds=0.01))
    notice.touch()
    with made as stop:
        assert reason_of(stop) == f"{notice} announces it"


@pytest.mark.parametrize(("seconds", "asks"), [(-1, False), (0, True), (1, True)])
def test_a_notice_that_is_there_asks_if_it_came_after_the_program_began(seconds, asks, tmp_path):
    notice, began = tmp_path / "notice", 1_700_000_000.0
    notice.touch()
    os.utime(notice, (began, began + seconds))
    config = PreemptionConfig(notice_file=str(notice), cloud=None, every_seconds=0.01)
    with Stop(config, since=began) as stop:
        if not asks:
            time.sleep(0.05)
            assert stop.requested() is None
            os.utime(notice, (began, began - 9))  # it is another one
        assert reason_of(stop) == f"{notice} announces it"


def test_a_server_that_answers_with_nonsense_ends_no_look(tmp_path, monkeypatch):
    def nonsense(*_, **__):
        raise http.client.BadStatusLine("nonsense")

    monkeypatch.setattr(urllib.request, "urlopen", nonsense)
    notice = tmp_path / "notice"
    config = PreemptionConfig(notice_file=str(notice), cloud="google", every_seconds=0.01)
    with Stop(config) as stop:
        time.sleep(0.05)
        notice.touch()
        assert reason_of(stop) == f"{notice} announces it"


@contextlib.contextmanager
def metadata_server(told: dict[str, str]):
    """Google's, with these answers; gives its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(told[self.path.rpartition("/")[2]].encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "value"),
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_the_cloud_asks(name, value, monkeypatch):
    told = {"preempted": "FALSE", "maintenance-event": "NONE"}
    with metadata_server(told) as address:
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        with Stop(PreemptionConfig(cloud="google", every_seconds=0.01)) as stop:
            time.sleep(0.1)
            assert stop.requested() is None
            told[name] = value
            assert reason_of(stop) == f"the cloud announces it ({name}: {value})"
