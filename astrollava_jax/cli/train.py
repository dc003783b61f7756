"""`astrollava train RUN.yaml`."""

import argparse
import os
import re
import time
from collections.abc import Sequence

from astrollava_jax.cli import options, supervisor

HELP = """\
Train one stage from a YAML file that says everything. When its run directory (`out`) holds the same
run, it goes on from the newest checkpoint; a finished run says so.

Any key of the file can be replaced: --batch.samples 64 --optimizer.groups.0.peak_lr 1e-4

SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C: the step is finished and saved, and the exit code is 75: start
the same command again. A second Ctrl-C ends at once. SIGUSR2 prints the stacks of all threads.

Several processes are one run where Slurm, MPI or a TPU pod started them, or with, in each of them,
  ASTROLLAVA_COORDINATOR=HOST:PORT   of process 0
  ASTROLLAVA_PROCESSES=N             how many there are
  ASTROLLAVA_PROCESS=I               which this one is, from 0 on
They share one file system. ASTROLLAVA_UNWATCHED=1 trains without the small parent process that
passes signals on and ends a run that hangs.

What is compiled is kept for the next start in ~/.cache/astrollava_jax/xla (or in the same folder
below XDG_CACHE_HOME); ASTROLLAVA_COMPILE_CACHE=DIR keeps it elsewhere, off instead of DIR nowhere.
"""


def main(argv: list[str]) -> None:
    """Reads the file and its overrides, and trains."""
    began = float(os.environ.pop(supervisor.BEGAN, time.time()))
    arguments, overrides = parsed(argv)

    from astrollava_jax.run.config import read_run
    from astrollava_jax.run.train import train

    train(
        read_run(arguments.run, overrides),
        bases=arguments.bases,
        dry=arguments.dry_run,
        since=began,
        profile=arguments.profile,
    )


def parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command's own words, and the values that replace keys of the file."""
    usage = "RUN.yaml [--dry-run] [--profile FIRST:LAST] [--base DIR] [--KEY.OF.THE.FILE VALUE ...]"
    parser = options.parser("train", HELP, usage)
    parser.add_argument("run", metavar="RUN.yaml", help="the run's file")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and one batch, and stop"
    )
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", type=step_range,
        help="trace these steps with JAX's profiler, into the folder profile of the run directory",
    )  # fmt: skip
    options.add_base(parser)
    overrides, rest = split_overrides(argv, own=("--help", "--dry-run", "--profile", "--base"))
    return parser.parse_args(rest), overrides


def step_range(words: str) -> tuple[int, int]:
    """`FIRST:LAST` as two numbers of steps.

    Raises:
        argparse.ArgumentTypeError: if it is something else.
    """
    found = re.fullmatch(r"(\d+):(\d+)", words)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST, as 10:12, found {words!r}")
    return int(found[1]), int(found[2])


def split_overrides(words: Sequence[str], own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--a.b VALUE` and `--a.b=VALUE` out of a command line.

    Args:
        words: the command line.
        own: options of the command itself, which are left in.

    Returns:
        The values by key, and the words that are left.

    Raises:
        ValueError: if a key has no value.
    """
    found, rest, waiting = {}, [], list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--") or key in own:
            rest.append(word)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ValueError(f"{word}: expected a value after it; a file's key takes one")
            value = waiting.pop(0)
        found[key.removeprefix("--")] = value
    return found, rest
