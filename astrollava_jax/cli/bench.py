"""`astrollava bench NAME ...`."""

import argparse
import importlib
import sys

from astrollava_jax.cli import options

BENCHES = {
    "train": "what a step of training takes, beside PyTorch and transformers' LLaVA",
    "load": "what it takes to have weights on the device, beside from_pretrained",
    "input": "what reading, decoding and packing take, beside transformers in a DataLoader",
}
"""Name of the module in `bench` -> what it measures."""

HELP = """\
Measure on this machine, side by side with PyTorch and transformers in the same run. These belong to
the extra `dev`.

{benches}

`astrollava bench NAME --help` says more. Exit codes: 0 measured; 1 something is not as it must be,
and named; 2 a mistake in what was asked.
"""


def main(argv: list[str]) -> None:
    """Runs one bench, and leaves with 1 where something is not as it must be."""
    benches = "\n".join(f"  {name:<8}{what}" for name, what in BENCHES.items())
    parser = options.parser("bench", HELP.format(benches=benches), "NAME ...")
    parser.add_argument("name", choices=BENCHES, help=argparse.SUPPRESS, metavar="NAME")
    # Only the first word belongs to this parser: `NAME --help` is the bench's own.
    name = parser.parse_args(argv[:1]).name
    code = importlib.import_module(f"astrollava_jax.bench.{name}").main(argv[1:])
    if code:
        sys.exit(code)
