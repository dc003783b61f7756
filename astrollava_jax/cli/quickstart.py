"""`astrollava quickstart`."""

import os

from astrollava_jax.cli import options

HELP = """\
The whole job on this machine, with nothing to download: draws a simulated sky, makes a small tower
and decoder, trains a projector between them (stage 1) and then the decoder with it (stage 2), asks
the model about pictures that it never saw, exports it to PyTorch, and writes a report.

Started again, it goes on where it ended.
"""


def main(argv: list[str]) -> None:
    """Runs it."""
    parser = options.parser("quickstart", HELP)
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="default: ./quickstart")
    arguments = parser.parse_args(argv)

    # The pictures are small: a processor is the right device even where there is another.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from astrollava_jax.run.quickstart import quickstart

    quickstart(arguments.out)
