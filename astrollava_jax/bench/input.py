"""Input side by side: records and packed rows, and transformers' processor in a DataLoader.

    astrollava bench input --work DIR
    astrollava bench input --packing-only

The time is that of processors, user and system, of a program and its workers, per picture: it does
not depend on how busy a machine is, as a clock does. Both programs read the same photographs, drawn
from a seed, and the same captions. Measured in turn, several times:

    as used        theirs on the original files, ours on records built once at training size
    same files     ours on records that hold the original files, with the same pixels as theirs
    the library    what the JPEG library alone takes to decode the records at training size

Then how long a step waits for its input, and how full packed rows are. Writes DIR/input.json.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from astrollava_jax import files
from astrollava_jax.bench import command, machine

RATE = 30.0
"""Pictures per second that a step takes: those of stage 1 of LLaVA-1.5-7B on one H200."""
WAITED_STEPS = 10
MOST_WAIT = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where pixels differ or rows are not as full as they should be."""
    arguments = _arguments(argv)
    # Only now: --help must come at once.
    from astrollava_jax.bench import input_measured, packing

    print(machine.described(), flush=True)
    facts: dict[str, Any] = {"machine": machine.described()}
    faults: list[str] = []
    if not arguments.packing_only:
        input_measured.theirs_class()  # before any work is done
        faults += _input(arguments, facts)
    filled = list(packing.measured(arguments.samples))
    facts["packing"] = [dataclasses.asdict(one) for one in filled]
    print("\nfilled part of all positions, empty rows counted\n" + packing.table(filled))
    faults += [fault for one in filled for fault in one.faults()]
    if arguments.work:
        files.write_json(files.join(arguments.work, "input.json"), facts | {"faults": faults})
    print("\n".join(faults) or "\nas it must be")
    return 1 if faults else 0


def _input(arguments: argparse.Namespace, facts: dict[str, Any]) -> list[str]:
    """Measures the input and prints it; returns what must not be."""
    from astrollava_jax.bench import input_job, input_measured

    job = input_job.write(
        command.begun_anew(files.join(arguments.work, "job")),
        count=arguments.photographs,
        megapixels=tuple(arguments.megapixels),
        side=arguments.side,
        mode=arguments.image,
        words=arguments.captions,
        tokenizer=arguments.tokenizer,
    )
    print(input_measured.pictures(job), flush=True)
    faults, found = input_measured.measured(
        job, arguments.workers, arguments.images, arguments.repeats
    )
    print("pixels: " + ("different" if faults else "equal in all photographs"))
    print("\n".join(input_measured.told(found)), flush=True)
    wait = input_measured.waited(job, arguments.workers, arguments.rate, arguments.steps)
    goal = "reached" if wait < MOST_WAIT else "NOT reached"
    print(
        f"input wait at {arguments.rate:g} pictures a second: {wait:.3%}  "
        f"to reach: below {MOST_WAIT:.0%}, {goal}"
    )
    facts |= {"milliseconds": found, "input_wait": wait}
    facts["ratios"] = {ratio.name: ratio.of(found) for ratio in input_measured.RATIOS}
    return faults


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="astrollava bench input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", metavar="DIR", help="a folder for everything that is written")
    add("--packing-only", action="store_true", help="only how full rows are; needs no PyTorch")
    add("--photographs", type=int, default=32, metavar="N", help="how many are drawn (32)")
    add("--megapixels", type=float, nargs=2, default=(1.0, 3.0), metavar="N", help="(1 3)")
    add("--side", type=int, default=336, metavar="PIXELS", help="of the tower's picture (336)")
    add("--image", choices=("pad", "crop"), default="pad", help="how it is made square (pad)")
    add("--captions", choices=("llava", "astrollava"), default="llava", help="how long (llava)")
    add("--tokenizer", metavar="DIR", help="a model's folder (default: the simulated sky's words)")
    add("--workers", type=int, default=2, metavar="N", help="of each program (2)")
    add("--images", type=int, default=96, metavar="N", help="originals in a repetition (96)")
    add("--repeats", type=int, default=5, metavar="N", help="(5)")
    add("--rate", type=float, default=RATE, metavar="N", help="pictures a second of a step (30)")
    add("--steps", type=int, default=WAITED_STEPS, metavar="N", help="that wait for input (10)")
    add("--samples", type=int, default=60_000, metavar="N", help="of each mix to pack (60000)")
    arguments = parser.parse_args(argv)
    if not arguments.packing_only and not arguments.work:
        parser.error("--work: expected a folder to write to, found none")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
