"""Loads a whole model to the device, by this package or by transformers, and says what it took.

    python -m astrollava_jax.bench.whole_model ours|transformers MODEL OUT.json

What is timed: from the open folder to numbers that lie in the device's memory, without imports. On
a CPU both read a byte of every page inside the clock: files that are mapped are otherwise read when
somebody first asks for them. Behind the clock a sum of all numbers is made, which both programs
must agree about.
"""

import argparse
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files

PAGE = 4096
"""Bytes that a system reads of a mapped file at least."""


def ours(folder: str) -> dict[str, Any]:
    """By the way that `train` and `load_model` read weights, each tensor in its own dtype."""
    import jax
    import jax.numpy as jnp

    from astrollava_jax.weights.directory import open_model
    from astrollava_jax.weights.load import load

    jax.devices()
    began, used = time.monotonic(), time.process_time()
    source = open_model(folder)
    params = jax.block_until_ready(load(source, source.shapes))
    if jax.default_backend() == "cpu":
        touch(np.asarray(x) for x in params.values())
    facts = _took(began, used)
    total = sum(float(jnp.sum(jnp.abs(x.astype(jnp.float32)))) for x in params.values())
    return facts | {"sum": total, "parameters": sum(x.size for x in params.values())}


def transformers(folder: str) -> dict[str, Any]:
    """By `from_pretrained`, in the files' own dtype, and to the GPU where there is one."""
    import torch
    from transformers import LlavaForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    began, used = time.monotonic(), time.process_time()
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")
    params = list(model.to(device).parameters())
    if device == "cpu":
        touch(x.detach().reshape(-1).view(torch.uint8).numpy() for x in params)
    facts = _took(began, used)
    total = sum(float(x.detach().abs().sum(dtype=torch.float32)) for x in params)
    return facts | {"sum": total, "parameters": sum(x.numel() for x in params)}


def touch(arrays: Iterable[Shaped[np.ndarray, "..."]]) -> int:
    """Reads a byte of every page of the arrays' memory; returns their sum."""
    return sum(int(array.reshape(-1).view(np.uint8)[::PAGE].sum()) for array in arrays)


def _took(began: float, used: float) -> dict[str, Any]:
    now = time.monotonic() - began, time.process_time() - used
    return dict(zip(("seconds", "processor_seconds"), now))


PROGRAMS = {"ours": ours, "transformers": transformers}


def main() -> None:
    """Loads one model by one program."""
    parser = argparse.ArgumentParser(prog="python -m astrollava_jax.bench.whole_model")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("model")
    parser.add_argument("out")
    arguments = parser.parse_args()
    files.write_json(arguments.out, PROGRAMS[arguments.program](arguments.model))


if __name__ == "__main__":
    main()
