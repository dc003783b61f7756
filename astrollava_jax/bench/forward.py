"""One forward pass of a whole model in bfloat16, by this package or by transformers.

    python -m astrollava_jax.bench.forward jax MODEL OUT
    python -m astrollava_jax.bench.forward transformers MODEL OUT

leave the scores of every word at every position in OUT/logits.npy, float32, and what they took in
OUT/facts.json. Both read the same picture and the same words.
"""

import argparse
import os
import time
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from astrollava_jax import files
from astrollava_jax.batch import empty_rows
from astrollava_jax.models.clip import MEAN, STD

WORDS_BEFORE, WORDS_BEHIND = 5, 19
SEED = 1


def picture_and_words(
    side: int, patches: int, image_id: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Int[np.ndarray, " T"]]:
    """Random pixels and ids, with as many positions for the picture as it has patches."""
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    words = rng.integers(3, image_id, WORDS_BEFORE + WORDS_BEHIND)
    words[0] = 1  # <s>
    place = np.full(patches, image_id)
    return pixels, np.concatenate([words[:WORDS_BEFORE], place, words[WORDS_BEFORE:]])


def ours(folder: str) -> tuple[Float32[np.ndarray, "T V"], dict[str, Any]]:
    """The scores by this package, computed as `Model.logits` does."""
    import jax
    import jax.numpy as jnp

    from astrollava_jax.models.layers import compiler_options
    from astrollava_jax.params import merge, split
    from astrollava_jax.weights.directory import open_model
    from astrollava_jax.weights.load import load

    source = open_model(folder)
    config, facts = source.config, source.config.image_facts
    pixels, tokens = picture_and_words(facts.size, facts.tokens, source.words)
    batch = empty_rows(1, len(tokens), 0, 1, facts)
    shown = tokens == source.words
    batch.tokens[0], batch.images[0, 0], batch.segment_ids[0] = tokens, pixels, 1
    batch.positions[0] = np.arange(len(tokens))
    batch.feature_index[0, shown] = np.arange(facts.tokens)

    graphdef, wanted = split(config.abstract())
    abstract = {a: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for a, x in wanted.items()}

    def scores(params: Any, batch: Any) -> jax.Array:
        model = merge(graphdef, params)
        return model.logits(model(batch, dtype=jnp.bfloat16).astype(jnp.float32))

    start = time.monotonic()
    compiled = jax.jit(scores, compiler_options=compiler_options()).lower(abstract, batch).compile()
    analysis: Any = compiled.memory_analysis()
    built = time.monotonic()
    params = load(source, wanted, dtypes="bfloat16")
    loaded = time.monotonic()
    found = jax.device_get(compiled(params, batch))[0]
    return found, {
        "compile_seconds": built - start,
        "load_seconds": loaded - built,
        "forward_seconds": time.monotonic() - loaded,
        "compiled_argument_gb": analysis.argument_size_in_bytes / 1e9,
        "compiled_temporary_gb": analysis.temp_size_in_bytes / 1e9,
    }


def theirs(folder: str) -> tuple[Float32[np.ndarray, "T V"], dict[str, Any]]:
    """The scores by transformers, with its default attention."""
    import torch
    from transformers import LlavaForConditionalGeneration

    start = time.monotonic()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    loaded = time.monotonic()
    config: Any = model.config
    vision, image_id = config.vision_config, config.image_token_index
    patches = (vision.image_size // vision.patch_size) ** 2
    pixels, tokens = picture_and_words(vision.image_size, patches, image_id)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    normal = (pixels.astype(np.float32) / 255 - mean) / std
    with torch.inference_mode():
        found = model(
            input_ids=torch.tensor(tokens)[None],
            pixel_values=torch.tensor(normal.transpose(2, 0, 1))[None].bfloat16(),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            use_cache=False,
        ).logits[0]
    return found.float().numpy(), {
        "load_seconds": loaded - start,
        "forward_seconds": time.monotonic() - loaded,
        "attention": config.text_config._attn_implementation,
    }


PROGRAMS = {"jax": ours, "transformers": theirs}


def main() -> None:
    """Runs one program on one model."""
    parser = argparse.ArgumentParser(prog="python -m astrollava_jax.bench.forward")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("model")
    parser.add_argument("out")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logits, facts = PROGRAMS[arguments.program](arguments.model)
    with files.publish(files.join(arguments.out, "logits.npy")) as handle:
        np.save(handle, logits)
    files.write_json(files.join(arguments.out, "facts.json"), facts)


if __name__ == "__main__":
    main()
