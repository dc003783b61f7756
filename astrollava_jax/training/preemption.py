"""Preemption: a run is asked to end, finishes its step, saves it, and says that it goes on.

It is asked by a signal, by a file that appears, or by the cloud that the machine belongs to.
"""

import http.client
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
from jax.experimental import multihost_utils
from pydantic import Field

from astrollava_jax import files
from astrollava_jax.config import config

RESUMABLE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""SIGUSR1 is what Slurm can be told to send ahead of time."""

AGAIN_SECONDS = 0.5
"""A second Ctrl-C after it ends at once; one before it is the same, come twice."""

GOOGLE = "http://{host}/computeMetadata/v1/instance/"
GOOGLE_ASKS = {
    "preempted": lambda told: told.upper() == "TRUE",
    "maintenance-event": lambda told: told.startswith("TERMINATE"),
}
"""What is asked of Google's metadata server, and which answers announce the end."""


class Resumable(Exception):
    """A run has ended before its end; started again, it goes on. The command's exit code is 75."""

    resumable = True


class Preempted(Resumable):
    """A run was asked to end; it is saved."""


@config
class PreemptionConfig:
    """Who may ask a run to end, besides a signal."""

    notice_file: str | None = None
    """A file whose appearance, or change, asks for it, from the moment on when the command is
    typed. An older one is of the machine's last end: it would stop every start of the run."""
    cloud: Literal["auto", "google"] | None = "auto"
    """Whose metadata server is asked; auto = Google's, on its machines. null = none."""
    every_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How often file and server are looked at."""


class Stop:
    """Whether the run is asked to end; inside its `with` block, signals ask.

    Make it before anything that takes long: a notice file asks if it appears or changes from then
    on. One that is there already asks only if it was written at `since` or later, in seconds since
    1970: the moment when the program began, where that was for this run alone.

    With several processes all of them stop after the same step: SIGTERM then belongs to JAX, which
    tells the others, and every other way of asking becomes a SIGTERM.
    """

    def __init__(self, config: PreemptionConfig, since: float | None = None):
        self._config = config
        self._several = False
        self._notice = None if config.notice_file is None else _notice(config.notice_file, since)
        self._before: dict[int, Any] = {}
        self._asked_at: float | None = None
        self._left = threading.Event()
        self._times_asked = 0
        self.reason: str | None = None
        """Why the run is asked to end, as far as this process knows."""

    def requested(self) -> str | None:
        """Why the run ends after this step, or None; every process asks after every step.

        JAX says yes to one number alone, the largest that a process has asked with, and one more.
        The numbers begin with 1 in every start, so that a signal before the first step is heard.
        """
        self._times_asked += 1
        if self._several and multihost_utils.reached_preemption_sync_point(self._times_asked):
            self.reason = self.reason or "a process of the run was asked to stop"
        return self.reason

    def ask(self, reason: str) -> None:
        """Asks the run to end."""
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.reason is None:
            self.reason = reason

    def __enter__(self) -> "Stop":
        self._several = jax.process_count() > 1
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS[1:] if self._several else SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._signalled)
        looks = [look for look in (self._notice, _cloud(self._config)) if look is not None]
        if looks:
            arguments = (looks, self._config.every_seconds)
            threading.Thread(target=self._look, args=arguments, name="notice", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for number, before in self._before.items():
            signal.signal(number, before)

    def _signalled(self, number: int, _: Any) -> None:
        """Only notes it: an exception would come in the middle of anything."""
        now = time.monotonic()
        if number == signal.SIGINT and self._asked_at is not None:
            if now - self._asked_at >= AGAIN_SECONDS:
                os._exit(RESUMABLE)
            return
        self._asked_at = now if self._asked_at is None else self._asked_at
        self.ask(signal.Signals(number).name)

    def _look(self, looks: list[Callable[[], str | None]], every_seconds: float) -> None:
        while not self._left.wait(every_seconds):
            for look in looks:
                reason = look()
                if reason is not None:
                    self.ask(reason)
                    return


def _cloud(config: PreemptionConfig) -> Callable[[], str | None] | None:
    """What says why the cloud ends the run, or None; None where there is no cloud."""
    google = config.cloud == "google" or (config.cloud == "auto" and _on_google())
    return _google if google else None


def _notice(path: str, since: float | None) -> Callable[[], str | None]:
    """What says that a notice file has come, or None; one from before `since` is none."""

    def changed_at() -> int | None:
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            return None

    old = changed_at()
    if old is not None and since is not None and old >= since * 1e9:
        old = None

    def look() -> str | None:
        return f"{path} announces it" if changed_at() not in (None, old) else None

    return look


def _google() -> str | None:
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    for name, ends in GOOGLE_ASKS.items():
        request = urllib.request.Request(
            GOOGLE.format(host=host) + name, headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                told = answer.read(200).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException):
            continue  # a server that does not answer, or with nonsense, announces nothing
        if ends(told):
            return f"the cloud announces it ({name}: {told})"
    return None


def _on_google() -> bool:
    product = "/sys/class/dmi/id/product_name"
    return files.exists(product) and "Google" in files.read_text(product)
