"""`astrollava ask MODEL "question" --image FILE`."""

import argparse

from astrollava_jax.cli import options


def main(argv: list[str]) -> None:
    """Prints one answer."""
    parser = options.parser(
        "ask", "One answer on stdout about some pictures, by a model in any layout."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="an HF or LLaVA directory, a run, or one of its checkpoints"
    )
    parser.add_argument("question")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated"
    )
    options.add_base(parser)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--max-new-tokens", type=_count, default=256, metavar="N")
    arguments = parser.parse_args(argv)

    from astrollava_jax.run.model import ask

    answer = ask(
        arguments.model,
        arguments.question,
        arguments.image,
        bases=arguments.bases,
        dtype=arguments.dtype,
        max_new_tokens=arguments.max_new_tokens,
    )
    print(answer)


def _count(word: str) -> int:
    """A number of tokens."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {word!r}")
    return int(word)
