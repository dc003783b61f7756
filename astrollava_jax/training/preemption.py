"""Preemption: a run is asked to end, finishes its step, saves it, and says that it goes on."""


class Resumable(Exception):
    """A run has ended before its end; started again, it goes on. The command's exit code is 75."""

    resumable = True
