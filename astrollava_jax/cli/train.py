"""`astrollava train RUN.yaml`."""

import argparse

HELP = """\
Train one stage from a YAML file that says everything. When its run directory (`out`) holds the same
run, it goes on from the newest checkpoint; a finished run says so.

Any key of the file can be replaced: --batch.samples 64 --optimizer.groups.0.peak_lr 1e-4
"""


def main(argv: list[str]) -> None:
    """Reads the file and its overrides, and trains."""
    parser = argparse.ArgumentParser(
        prog="astrollava train",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="astrollava train RUN.yaml [--dry-run] [--base DIR] [--KEY.OF.THE.FILE VALUE ...]",
    )
    parser.add_argument("run", metavar="RUN.yaml", help="the run's file")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and one batch, and stop"
    )
    parser.add_argument(
        "--base", metavar="DIR", help="where the original model stands now, if it moved"
    )
    arguments, rest = parser.parse_known_args(argv)
    overrides = parse_overrides(rest)

    from astrollava_jax.config import override as set_key
    from astrollava_jax.config import parse, read
    from astrollava_jax.run.config import RunConfig, replace_steps
    from astrollava_jax.run.train import train

    tree = read(arguments.run)
    replace_steps(tree, overrides)
    for key, value in overrides.items():
        set_key(tree, key, value)
    run = parse(RunConfig, tree, arguments.run)
    train(run, base=arguments.base, dry=arguments.dry_run)


def parse_overrides(words: list[str]) -> dict[str, str]:
    """`--a.b VALUE` and `--a.b=VALUE` as key and value.

    Raises:
        ValueError: at a word that is neither.
    """
    found, waiting = {}, list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"expected --KEY VALUE, found {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not waiting:
                raise ValueError(f"{word}: expected a value after it")
            value = waiting.pop(0)
        found[key] = value
    return found
