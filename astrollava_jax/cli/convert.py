"""`astrollava convert SRC DST --layout hf|llava|orbax|peft`."""

import argparse
import json

from astrollava_jax.cli import options

HELP = """\
Turn a model from one layout into another. SRC is a HF LLaVA directory, an original LLaVA directory,
a PEFT or LLaVA adapter, a bare `mm_projector.bin` of LLaVA, a run directory, one of its
checkpoints, or what `--layout orbax` wrote. Nothing changes its dtype unless --dtype says so. DST
must not exist.

  astrollava convert SRC DST --layout hf
  astrollava convert --vision CLIP --llm VICUNA DST --layout hf      two towers, a fresh projector
  astrollava convert SRC --vision CLIP DST --layout hf               SRC lacks its tower
  astrollava convert PROJECTOR --vision CLIP --llm VICUNA DST --layout hf
  astrollava convert ADAPTER --base MODEL DST --layout hf --merge    full weights
  astrollava convert RUN DST --layout hf --merge                     RUN trained LoRA adapters
  astrollava convert RUN DST --layout peft                           the adapters alone, for PEFT
  astrollava convert SRC DST --layout hf --image-size 448            its tower sees larger pictures
  astrollava convert SRC DST --layout hf --image-size 448 --grid "[[448, 896], [896, 448]]"
"""


def main(argv: list[str]) -> None:
    """Converts."""
    usage = "[SRC] DST --layout {hf,llava,orbax,peft} [options]"
    parser = options.parser("convert", HELP, usage)
    parser.add_argument("paths", nargs="+", metavar="[SRC] DST", help="from where, to where")
    parser.add_argument("--layout", choices=("hf", "llava", "orbax", "peft"), required=True)
    parser.add_argument("--vision", metavar="DIR", help="a vision tower's directory")
    parser.add_argument("--llm", metavar="DIR", help="a language model's directory")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="interpolate the tower's positions to N pixels"
    )
    parser.add_argument(
        "--grid",
        type=_canvases,
        metavar="CANVASES",
        help="canvases [[height, width], ...] for pictures of any resolution, in multiples of the "
        "tower's size",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--merge", action="store_true", help="write full weights, with LoRA adapters added in"
    )
    options.add_base(parser)
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of what is fresh")
    # Options may stand between the two directories.
    arguments = parser.parse_intermixed_args(argv)
    joined = len(arguments.paths) == 1
    if len(arguments.paths) > 2 or (joined and not (arguments.llm and arguments.vision)):
        parser.error("expected SRC DST, or DST alone with --vision and --llm")

    from astrollava_jax.run.convert import convert

    convert(
        None if joined else arguments.paths[0],
        arguments.paths[-1],
        arguments.layout,
        vision=arguments.vision,
        llm=arguments.llm,
        bases=arguments.bases,
        image_size=arguments.image_size,
        grid=arguments.grid,
        dtype=arguments.dtype,
        seed=arguments.seed,
        merge=arguments.merge,
    )


def _canvases(text: str) -> tuple[tuple[int, int], ...]:
    """Canvases as a run's file has them."""
    try:
        found = tuple((height, width) for height, width in json.loads(text))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(type(side) is int for canvas in found for side in canvas):
        raise argparse.ArgumentTypeError(
            f"expected canvases [[height, width], ...] in pixels, found {text!r}"
        )
    return found


def _seed(word: str) -> int:
    """A seed, as a run's file may have it."""
    if not word.isdecimal() or int(word) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**31 - 1, found {word!r}")
    return int(word)
