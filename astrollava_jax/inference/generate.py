"""Greedy decoding: the likeliest token, again and again, until the answer ends.

All shapes are static: prompts of like length share a batch, padded on the right, and few lengths
exist, so that little is compiled. An answer follows its own prompt, over the padding:

    prompt     <s> <img> <img>  What  ?    .     .     .
    answer                                 A   star  </s>
    position    0    1     2     3    4    5     6     7
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from astrollava_jax import compiler
from astrollava_jax.batch import Batch, ImageFacts
from astrollava_jax.inference.cache import empty_cache, read_on
from astrollava_jax.inference.prompt import Prompt, to_batch
from astrollava_jax.params import merge
from astrollava_jax.sharding import rows_multiple, shard

MAX_POSITIONS = 16_384
"""Most positions of one batch, so that its activations fit where the model does."""


@functools.cache
def _compiled(function: Callable[..., Array], *static: str) -> Callable[..., Array]:
    """The function under `jax.jit`: made when it is used, for it asks which back end there is."""
    names = ("graphdef", "dtype", *static)
    told = compiler.inference_options(jax.local_devices()[0])
    return jax.jit(function, static_argnames=names, compiler_options=told)


def complete(
    graphdef: nnx.GraphDef,
    params: Mapping[str, Array],
    batch: Batch,
    is_stop: Bool[Array, "V"],
    limit: Int[Array, ""],
    *,
    room: int,
    dtype: str,
) -> Int[Array, "B room"]:
    """The answers to a batch, at most `limit` tokens each; -1 from where an answer ended.

    The token that ends an answer is not part of it. Empty rows answer nothing.
    """
    model = merge(graphdef, params)
    rows, length = batch.tokens.shape
    ends = batch.segment_ids.sum(axis=1)
    x = model.place(batch.tokens, batch.feature_index, _features(model, batch, dtype))
    cache = empty_cache(model.llm, rows, length + room, x.dtype)
    hidden, cache = read_on(model.llm, shard(x, "batch", "length", None), batch.positions, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(ends - 1, 0)[:, None, None], axis=1)

    def likeliest(hidden):
        # In bfloat16 the best two tokens would often tie.
        return jnp.argmax(model.logits(hidden[:, 0].astype(jnp.float32)), axis=-1)

    def goes_on(state):
        step, _, done, _, _ = state
        return (step < limit) & ~done.all()

    def advance(state):
        step, token, done, answers, cache = state
        answers = answers.at[:, step].set(jnp.where(done, -1, token))
        x = model.llm.embed(token[:, None], jnp.dtype(dtype))
        hidden, cache = read_on(model.llm, x, (ends + step)[:, None], cache)
        token = likeliest(hidden)
        return step + 1, token, done | is_stop[token], answers, cache

    token = likeliest(last)
    answers = jnp.full((rows, room), -1)
    state = (0, token, is_stop[token] | (ends == 0), answers, cache)
    return jax.lax.while_loop(goes_on, advance, state)[3]


def all_logits(
    graphdef: nnx.GraphDef, params: Mapping[str, Array], batch: Batch, *, dtype: str
) -> Float[Array, "B T V"]:
    """Scores of every word at every position, in float32."""
    model = merge(graphdef, params)
    return model.logits(model(batch, dtype=jnp.dtype(dtype)).astype(jnp.float32))


def _features(model: Any, batch: Batch, dtype: str) -> Float[Array, "B IP D"]:
    rows, per_row, *square = batch.images.shape
    images = batch.images.reshape(rows * per_row, *square)
    features = model.encode(shard(images, "batch", None, None, None), jnp.dtype(dtype))
    return features.reshape(rows, -1, features.shape[-1])


def batches(
    prompts: Sequence[Prompt], room: int, facts: ImageFacts, mesh: Mesh | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Prompts of like length and like numbers of images together; answers will take `room`.

    Yields the numbers of the prompts, and the batch whose first rows they are. A prompt is padded
    to the same length in whatever company it comes.
    """

    def size(number: int) -> tuple[int, int]:
        prompt = prompts[number]
        return padded_length(len(prompt.tokens)), prompt.places

    for (length, places), alike in itertools.groupby(
        sorted(range(len(prompts)), key=size), key=size
    ):
        numbers = list(alike)
        most = 1 << max(1, MAX_POSITIONS // (length + room)).bit_length() - 1
        rows = _rows(min(len(numbers), most), mesh)
        for start in range(0, len(numbers), most):
            chunk = numbers[start : start + most]
            chosen = [prompts[number] for number in chunk]
            yield chunk, to_batch(chosen, rows, length, places, facts)


def generate(
    graphdef: nnx.GraphDef,
    params: Mapping[str, Array],
    prompts: Sequence[Prompt],
    facts: ImageFacts,
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    vocab_size: int,
    dtype: str,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """The ids of the answer to each prompt, without the token that ended it."""
    answers: list[list[int]] = [[] for _ in prompts]
    is_stop = np.isin(np.arange(vocab_size), list(stop_ids))
    limit, room = np.int32(max_new_tokens), padded_length(max_new_tokens)
    answer = _compiled(complete, "room")
    with _on(mesh), _precise(dtype):
        for numbers, batch in batches(prompts, room, facts, mesh):
            said = answer(graphdef, params, batch, is_stop, limit, room=room, dtype=dtype)
            for number, tokens in zip(numbers, jax.device_get(said)):
                answers[number] = tokens[tokens >= 0].tolist()
    return answers


def logits(
    graphdef: nnx.GraphDef,
    params: Mapping[str, Array],
    prompts: Sequence[Prompt],
    facts: ImageFacts,
    *,
    vocab_size: int,
    dtype: str,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "B T V"]:
    """Scores at every position of each prompt; zeros behind the shorter ones."""
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    found = np.zeros((len(prompts), longest, vocab_size), np.float32)
    score = _compiled(all_logits)
    with _on(mesh), _precise(dtype):
        for numbers, batch in batches(prompts, 0, facts, mesh):
            scores = jax.device_get(score(graphdef, params, batch, dtype=dtype))
            for row, number in enumerate(numbers):
                end = len(prompts[number].tokens)
                found[number, :end] = scores[row, :end]
    return found


def padded_length(positions: int) -> int:
    """The next of few lengths, four per doubling: 32 64 96 128 160 192 224 256 320 384 448 512."""
    step = max(32, 2 ** (positions.bit_length() - 3))
    return -(-positions // step) * step


def _rows(count: int, mesh: Mesh | None) -> int:
    """The next power of two that the mesh divides."""
    multiple = 1 if mesh is None else rows_multiple(mesh)
    rows = 1 << (count - 1).bit_length()
    return -(-rows // multiple) * multiple


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Computes on the mesh, if there is one."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _precise(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Makes float32 mean float32: full products on every device."""
    if dtype == "float32":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
