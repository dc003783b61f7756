"""`astrollava plan RUN.yaml --topology v5e-16`."""

import argparse
import importlib.util
import os
import sys

from astrollava_jax.cli import libtpu
from astrollava_jax.cli.train import split_overrides

DOES_NOT_FIT = 3

HELP = """\
Compile the step that `train` would run, for a machine that need not be there, and tell what the
compiler knows: whether it fits into the memory of a chip, what fills it, what the chips exchange,
and how much is computed. No weights and no records are needed: the model's config files are enough,
or its published name (--shape llava-1.5-7b). A minute or more, and some GB of memory, at full size.

Any key of the file can be replaced, as for `train`: --remat dots --mesh.tensor 4

Exit codes: 0 it fits; 3 it was compiled and does not fit, then settings that may are tried, the
least harmful first; 2 a mistake in what was asked.

--sweep compiles several settings, some minutes each, tells each on stderr as it is done, and ranks
them by modelled time per token, as a part of plain FSDP's. Axes and their values:
  rows=2,4,8                     rows of a chip at a time; by default those of the batch
  mesh=file,fsdp,copies,data2,tensor2,tensor4    the file's; all in slices; the frozen weights whole
                                 on every chip; all twice; two or four chips to a row
  remat=none,dots_attention,dots,mlp,projections,attention,full,offload
  options=table,none             what `train` tells the compiler of this chip, or nothing
  attention=auto,xla,splash,cudnn,blocks
--measure takes steps on the devices of this machine, with random weights and full random rows, of
the run or of each setting of --sweep, and tells what they took.
With either, code 0 says that one of the settings fits or was run, 3 that none does.
"""

OWN = [
    "--help", "--topology", "--rows-per-chip", "--shape", "--estimate", "--sweep", "--measure",
    "--trace", "--json",
]  # fmt: skip
"""All other options are keys of the file."""


def main(argv: list[str]) -> None:
    """Reads the file and its overrides, and plans."""
    overrides, rest = split_overrides(argv, OWN)
    given = vars(_parser().parse_args(rest))

    from astrollava_jax.run.plan_options import LOCAL, Asked

    file, asked = given.pop("file"), Asked(**given)
    if asked.topology != LOCAL:
        _prepare_compiler()

    from astrollava_jax.run.config import read_run
    from astrollava_jax.run.planning import show_plan

    folder = os.path.dirname(os.path.abspath(file))
    if not show_plan(read_run(file, overrides), folder, asked):
        sys.exit(DOES_NOT_FIT)


def _parser() -> argparse.ArgumentParser:
    """What the command takes, by the names of `Asked`."""
    parser = argparse.ArgumentParser(
        prog="astrollava plan",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="astrollava plan RUN.yaml --topology NAME [options] [--KEY.OF.THE.FILE VALUE ...]",
    )
    parser.add_argument("file", metavar="RUN.yaml", help="the run's file")
    parser.add_argument(
        "--topology", required=True, metavar="NAME",
        help="v5e-16, v6e-8, v4-32, v5p-8, ...; or `local`: the devices of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--rows-per-chip", type=int, metavar="N",
        help="a step of N rows on each chip, whatever the batch of the file",
    )  # fmt: skip
    parser.add_argument(
        "--shape", metavar="NAME",
        help="a published name, or a directory of config files",
    )  # fmt: skip
    parser.add_argument(
        "--estimate", action="store_true",
        help="model the step's time too: for ranking, no promise",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", dest="axes", nargs="*", metavar="AXIS=A,B",
        help="several settings; without any, some ten that are likely",
    )  # fmt: skip
    parser.add_argument(
        "--measure", type=int, metavar="N",
        help="with --topology local: take N steps with random numbers, after a first, and time "
        "them; with --sweep those of each setting",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="DIR", help="with --measure: trace one step more, and write that there"
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print JSON instead of tables"
    )
    return parser


def _prepare_compiler() -> None:
    """Makes ready for libtpu, which reads the environment when JAX loads it."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu, which holds the compiler for TPUs, is not installed (no TPU is needed): "
            "pip install 'astrollava_jax[plan]'"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no TPU is looked for
    libtpu.tell()
