"""`astrollava`: the table of commands, and what an exit code means.

Nothing heavy is imported before the command is known, so that `--help` answers at once.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback
from typing import Any

from astrollava_jax.cli import libtpu, streams, supervisor

COMMANDS = {
    "quickstart": "the whole job on a simulated sky, on this machine, in minutes",
    "train": "train one stage, or go on with it, from a YAML file",
    "convert": "turn a model from one layout into another",
    "ask": "one answer about some pictures",
    "plan": "compile a run's step for a machine that need not be there: does it fit?",
    "verify": "compare checkpoints, exports and records with their checksums",
    "bench": "measured figures, side by side with PyTorch where it is installed",
}

GOES_ON = ("quickstart", "train")
"""Commands that, started again, go on where they ended."""

COMPLETE, FAILED, MISTAKE, RESUMABLE = 0, 1, 2, 75

PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What a wrong path leads to; other errors of the system are no mistake of the user's."""

PATH_NUMBERS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""The same, where Python has no class for it: a read-only file system, an impossible name."""

MOST_LINES = 40

EPILOG = """\
commands:
{commands}

`astrollava COMMAND --help` says more. Exit codes: 0 complete; 2 a mistake in what was asked, told
in one screen; 75 stopped, start the same command again to go on; 1 anything else. `plan` alone has
3: compiled, does not fit.
"""


LESS = (
    "a device's memory is full; in training fewer rows at a time (--batch.rows_per_device N) take "
    "less of it, and so does what is kept of a layer (--remat full): both may change between starts"
)
"""What to do where JAX finds no more memory on a device."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    What goes on when it is started again is run in a child that is watched, if it comes from the
    command line; a given `argv` is run here.
    """
    typed = argv is None
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="astrollava",
        description="LLaVA in JAX: train it in two stages, resume it, give it back to PyTorch.",
        epilog=EPILOG.format(
            commands="\n".join(f"  {name:<12}{what}" for name, what in COMMANDS.items())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="astrollava COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not argv:
        parser.print_help()
        return MISTAKE
    # Only the first word belongs to this parser: `COMMAND --help` is the command's own.
    arguments = parser.parse_args(argv[:1])
    if typed:
        libtpu.tell_unless_a_tpu_is_here()
    if typed and arguments.command in GOES_ON:
        supervisor.note_began()
        streams.make_lasting()
    if typed and arguments.command in GOES_ON and supervisor.wanted(argv):
        return supervisor.supervise(argv)
    module = importlib.import_module(f"astrollava_jax.cli.{arguments.command}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes about the processor
    # Of a GPU's memory JAX would take three quarters; what is left is for cuBLAS, cuDNN and NCCL.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
    if not typed or arguments.command not in GOES_ON:
        return _run(module, argv[1:])
    supervisor.begin_child()
    try:
        code = _run(module, argv[1:])
    except Exception:
        traceback.print_exc()
        code = FAILED
    if code != COMPLETE:
        supervisor.end_child(code)
    return code


def _run(module: Any, argv: list[str]) -> int:
    try:
        module.main(argv)
    except KeyboardInterrupt:
        if module.__name__.rsplit(".", 1)[-1] not in GOES_ON:
            print("\nstopped", file=sys.stderr)
            return FAILED
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return RESUMABLE
    except Exception as error:
        if getattr(error, "resumable", False):
            print(f"astrollava: {_told(error)}", file=sys.stderr)
            return RESUMABLE
        if _disk_is_full(error):
            # A checkpoint that could not be saved names the one from which the run goes on.
            ours = isinstance(error, ValueError) and _is_mistake(error)
            told = _told(error) if ours else "no room left on the disk: make some, start again"
            print(f"astrollava: {told}", file=sys.stderr)
            return FAILED
        if _device_is_full(error):
            print(f"astrollava: {_told(error).splitlines()[0]}\n{LESS}", file=sys.stderr)
            return FAILED
        if not _is_mistake(error):
            raise
        print(f"astrollava: {_told(error)}", file=sys.stderr)
        return MISTAKE
    return COMPLETE


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what an error came of, in whichever library."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # as tensorstore tells it
            return True
        error = error.__cause__ or error.__context__
    return False


def _device_is_full(error: Exception) -> bool:
    """Whether JAX, which may not be loaded, says that a device has no memory left."""
    is_jaxs = type(error).__name__ == "JaxRuntimeError"
    return is_jaxs and "RESOURCE_EXHAUSTED" in str(error) and "memory" in str(error)


def _is_mistake(error: Exception) -> bool:
    """Whether our own code raised it, to tell the user; a library's error is a defect of ours.

    A path that cannot be opened is told by the system, through `files`.
    """
    path_error = isinstance(error, PATH_ERRORS) or getattr(error, "errno", None) in PATH_NUMBERS
    if not path_error and not isinstance(error, ValueError):
        return False
    package = os.path.dirname(os.path.dirname(__file__))
    frames = [os.path.abspath(f.filename) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError) and os.path.join(package, "files.py") in frames:
        return True
    return frames[-1].startswith(package + os.sep)


def _told(error: Exception) -> str:
    """The message, in one screen."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {str(error.strerror).lower()}; correct the path"
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more lines"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
