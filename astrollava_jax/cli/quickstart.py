"""`astrollava quickstart`."""

import argparse
import os

HELP = """\
The whole job on this machine, with nothing to download: draws a simulated sky, makes a small tower
and decoder, trains a projector between them (stage 1) and then the decoder with it (stage 2), asks
the model about pictures that it never saw, exports it to PyTorch, and writes a report.

Started again, it goes on where it ended.
"""


def main(argv: list[str]) -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(
        prog="astrollava quickstart",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="default: ./quickstart")
    arguments = parser.parse_args(argv)

    # The pictures are small: a processor is the right device even where there is another.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # A device per core, each with one thread and its own rows: with arrays this small, threads that
    # share a product wait for each other most of the time.
    cores = os.cpu_count() or 1
    flags = f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("XLA_FLAGS", flags)
    from astrollava_jax.run.quickstart import quickstart

    quickstart(arguments.out)
