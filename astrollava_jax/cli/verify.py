"""`astrollava verify PATH`."""

import sys

from astrollava_jax.cli import options

HELP = """\
Compare what lies on the disk with the checksums that were written with it: every byte of a
checkpoint, of the beginning of a run directory, of a model that convert or save_model wrote, of a
record set and of each of its records. PATH is one of these, or a folder that holds some: a run
directory stands for its checkpoints too. Nothing is changed, and a run may go on meanwhile: what
it is writing is told as such, what it removes is passed over, and neither is damage.

Exit codes: 0 all is as it was written; 1 something is damaged, and every such file is named; 2
nothing there can be verified.
"""

DAMAGED = 1


def main(argv: list[str]) -> None:
    """Verifies, and leaves with 1 where something is damaged."""
    parser = options.parser("verify", HELP)
    parser.add_argument("path", metavar="PATH", help="a folder")
    arguments = parser.parse_args(argv)

    from astrollava_jax.run.verify import verify

    damaged = 0
    for found in verify(arguments.path):
        print(found, flush=True)
        damaged += bool(found.faults)
    if damaged:
        sys.exit(DAMAGED)
