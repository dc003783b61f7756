"""A forward pass of a whole model in bfloat16 and one in float32, by this package or transformers.

    python -m astrollava_jax.bench.forward jax MODEL OUT
    python -m astrollava_jax.bench.forward transformers MODEL OUT

leave the scores of every word at every position in OUT/bfloat16.npy and OUT/float32.npy, and what
they took in OUT/facts.json. Both read the same picture and the same words; the weights stay in
bfloat16, of which a layer at a time is made float32.
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
DTYPES = ("bfloat16", "float32")
"""What is computed in, in this order: `_widen` cannot be taken back."""


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


Scores = dict[str, Float32[np.ndarray, "T V"]]


def ours(folder: str) -> tuple[Scores, dict[str, Any]]:
    """The scores by this package in each dtype, computed as `Model.logits` does."""
    import jax
    import jax.numpy as jnp

    from astrollava_jax import compiler
    from astrollava_jax.params import merge, split
    from astrollava_jax.weights.directory import open_model
    from astrollava_jax.weights.load import load

    source = open_model(folder)
    config, shape = source.config, source.config.image_facts
    pixels, tokens = picture_and_words(shape.size, shape.tokens, source.words)
    batch = empty_rows(1, len(tokens), 0, 1, 0, shape)
    batch.tokens[0], batch.images[0, 0], batch.segment_ids[0] = tokens, pixels, 1
    batch.positions[0] = np.arange(len(tokens))
    batch.feature_index[0, tokens == source.words] = np.arange(shape.tokens)

    graphdef, wanted = split(config.abstract())
    abstract = {a: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for a, x in wanted.items()}
    programs, scores, facts = {}, {}, {}
    told = compiler.options(jax.devices()[0])
    for dtype in DTYPES:
        # Before anything is loaded: whether the model fits is known from here on.
        def pass_(params: Any, batch: Any, dtype: str = dtype) -> jax.Array:
            model = merge(graphdef, params)
            return model.logits(model(batch, dtype=jnp.dtype(dtype)).astype(jnp.float32))

        start = time.monotonic()
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            lowered = jax.jit(pass_, compiler_options=told).lower(abstract, batch)
        programs[dtype] = lowered.compile()
        analysis: Any = programs[dtype].memory_analysis()
        facts[f"{dtype}_compile_seconds"] = time.monotonic() - start
        facts[f"{dtype}_temporary_gb"] = analysis.temp_size_in_bytes / 1e9
        facts["parameters_gb"] = analysis.argument_size_in_bytes / 1e9
    start = time.monotonic()
    params = load(source, wanted, dtypes="bfloat16")
    facts["load_seconds"] = time.monotonic() - start
    for dtype, program in programs.items():
        start = time.monotonic()
        scores[dtype] = jax.device_get(program(params, batch))[0]
        facts[f"{dtype}_seconds"] = time.monotonic() - start
    return scores, facts


def theirs(folder: str) -> tuple[Scores, dict[str, Any]]:
    """The scores by transformers in each dtype, with its default attention."""
    import torch
    from transformers import LlavaForConditionalGeneration

    start = time.monotonic()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    config: Any = model.config
    facts = {
        "load_seconds": time.monotonic() - start,
        "attention": config.text_config._attn_implementation,
    }
    vision, image_id = config.vision_config, config.image_token_index
    patches = (vision.image_size // vision.patch_size) ** 2
    pixels, tokens = picture_and_words(vision.image_size, patches, image_id)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    normal = (pixels.astype(np.float32) / 255 - mean) / std
    scores = {}
    for dtype in DTYPES:
        if dtype == "float32":
            _widen(model)
        start = time.monotonic()
        with torch.inference_mode():
            found = model(
                input_ids=torch.tensor(tokens)[None],
                pixel_values=torch.tensor(normal.transpose(2, 0, 1))[None].to(
                    getattr(torch, dtype)
                ),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                use_cache=False,
            ).logits[0]
        scores[dtype] = found.float().numpy()
        facts[f"{dtype}_seconds"] = time.monotonic() - start
    return scores, facts


def _widen(model: Any) -> None:
    """Lets a model compute in float32, once: a decoder layer is float32 only while it computes."""
    inner, decoder = model.model, model.model.language_model
    for part in (inner.vision_tower, inner.multi_modal_projector, model.lm_head):
        part.float()
    decoder.embed_tokens.float()
    decoder.norm.float()

    def before(layer: Any, _: Any) -> None:
        layer.float()

    def after(layer: Any, _: Any, __: Any) -> None:
        layer.to("meta")

    for layer in decoder.layers:
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


PROGRAMS = {"jax": ours, "transformers": theirs}


def main() -> None:
    """Runs one program on one model, in each dtype."""
    parser = argparse.ArgumentParser(prog="python -m astrollava_jax.bench.forward")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("model")
    parser.add_argument("out")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    scores, facts = PROGRAMS[arguments.program](arguments.model)
    for dtype, found in scores.items():
        with files.publish(files.join(arguments.out, f"{dtype}.npy")) as handle:
            np.save(handle, found)
    files.write_json(files.join(arguments.out, "facts.json"), facts)


if __name__ == "__main__":
    main()
