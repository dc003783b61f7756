"""Flash attention by ordinary operations: a block of scores at a time, empty blocks passed over.

For processors, whose caches hold a block: of a packed row most pairs lie in two samples, or in the
future, and a whole square of scores is read and written a dozen times. Nothing of the length's
square exists, forward or backward. Source: arXiv 2205.14135.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128
"""Positions of a block. Smaller ones skip more, and make products too small to be fast."""

SHORTEST = 4 * BLOCK
"""Shorter rows are faster whole."""

_NEVER = -1e30
"""A score that no other is below, far from the end of float32."""


def gather(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    saved_as: str,
) -> Float[Array, "B T N H"]:
    """What `attention` gives, for the rows and heads of one device.

    The positions of a sample stand together in a row.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: which sample each position belongs to.
        causal: whether a query sees nothing later.
        window: how many positions a query sees, its own included.
        softcap: what no score passes.
        scale: of the scores.
        saved_as: the name by which a remat policy knows what the backward pass needs besides q, k
            and v: the result, and the logarithm of each softmax's divisor.
    """
    how = (causal, window, softcap, scale, saved_as)
    return jax.lax.map(lambda row: _row(how, *row), (q, k, v, segment_ids))


How = tuple[bool, int | None, float | None, float, str]
Queries = Float[Array, "n K R H"]
"""In blocks: R = G x C, those that share keys one after the other, C positions of each."""
Keys = Float[Array, "n K C H"]
"""In blocks of C positions; values too."""


def _row(how: How, q: Array, k: Array, v: Array, ids: Array) -> Float[Array, "T N H"]:
    (length, heads, width), shared = q.shape, k.shape[1]
    short = -length % BLOCK

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, short), (0, 0), (0, 0))).astype(jnp.float32)
        x = x.reshape(-1, BLOCK, shared, x.shape[1] // shared, width)
        return x.transpose(0, 2, 3, 1, 4).reshape(len(x), shared, -1, width)

    ids = jnp.pad(ids, (0, short), constant_values=-1)
    found: Any = _flash(how, blocks(q), blocks(k), blocks(v), ids)
    found = found.reshape(len(found), shared, heads // shared, BLOCK, width)
    return found.transpose(0, 3, 1, 2, 4).reshape(-1, heads, width)[:length].astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(how: How, q: Queries, k: Keys, v: Keys, ids: Int[Array, " T"]) -> Queries:
    return _forward(how, q, k, v, ids)[0]


def _forward(how: How, q: Queries, k: Keys, v: Keys, ids: Array) -> tuple[Queries, Array]:
    """The result, and the logarithm of each softmax's divisor `[n, K, R]`."""
    first, last = _reach(how, ids)

    def of_queries(i: Array) -> tuple[Array, Array]:
        def add(j: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            most, divisor, total = so_far
            scores, _ = _scores(how, q[i], k[j], _visible(how, ids, i, j, q.shape[2]))
            higher = jnp.maximum(most, scores.max(axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            faded = jnp.exp(most - higher)
            divisor = divisor * faded + weights.sum(axis=-1)
            total = total * faded[..., None] + jnp.einsum("KRC,KCH->KRH", weights, v[j])
            return higher, divisor, total

        zero = jnp.zeros(q.shape[1:3], jnp.float32)
        begin = zero + _NEVER, zero, jnp.zeros(q.shape[1:], jnp.float32)
        most, divisor, total = jax.lax.fori_loop(first[i], last[i], add, begin)
        return total / divisor[..., None], most + jnp.log(divisor)

    return jax.lax.map(of_queries, jnp.arange(len(q)))


def _kept(how: How, q: Queries, k: Keys, v: Keys, ids: Array) -> tuple[Queries, Any]:
    found = tuple(checkpoint_name(x, how[-1]) for x in _forward(how, q, k, v, ids))
    return found[0], (q, k, v, ids, *found)


def _backward(how: How, kept: Any, gradient: Queries) -> tuple[Queries, Keys, Keys, None]:
    q, k, v, ids, found, logarithm = kept
    first, last = _reach(how, ids, of_keys=True)
    along = jnp.sum(gradient * found, axis=-1)

    def of_keys(dq: Queries, j: Array) -> tuple[Queries, tuple[Array, Array]]:
        def add(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = so_far
            scores, slope = _scores(how, q[i], k[j], _visible(how, ids, i, j, q.shape[2]))
            weights = jnp.exp(scores - logarithm[i][..., None])
            dv += jnp.einsum("KRC,KRH->KCH", weights, gradient[i])
            pull = jnp.einsum("KRH,KCH->KRC", gradient[i], v[j])
            pull = weights * (pull - along[i][..., None]) * slope
            dk += jnp.einsum("KRC,KRH->KCH", pull, q[i])
            return dq.at[i].add(jnp.einsum("KRC,KCH->KRH", pull, k[j])), dk, dv

        zeros = jnp.zeros(k.shape[1:], jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(first[j], last[j], add, (dq, zeros, zeros))
        return dq, (dk, dv)

    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros_like(q), jnp.arange(len(k)))
    return dq, dk, dv, None


_flash.defvjp(_kept, _backward)


def _scores(
    how: How, q: Float[Array, "K R H"], k: Float[Array, "K C H"], visible: Bool[Array, "R C"]
) -> tuple[Float[Array, "K R C"], Any]:
    """Scores of a block, and how they change with the products of queries and keys."""
    _, _, softcap, scale, _ = how
    scores, slope = jnp.einsum("KRH,KCH->KRC", q, k) * scale, scale
    if softcap is not None:
        bent = jnp.tanh(scores / softcap)
        scores, slope = softcap * bent, scale * (1 - bent * bent)
    return jnp.where(visible, scores, _NEVER), slope


def _visible(how: How, ids: Array, i: Array, j: Array, rows: int) -> Bool[Array, "R C"]:
    """Which keys of block j the queries of block i may look at."""
    causal, window, *_ = how
    place = jnp.arange(BLOCK)
    mine, theirs = (jax.lax.dynamic_slice_in_dim(ids, x * BLOCK, BLOCK) for x in (i, j))
    distance = (i * BLOCK + place)[:, None] - (j * BLOCK + place)[None, :]
    visible = mine[:, None] == theirs[None, :]
    if causal:
        visible &= distance >= 0
    if window is not None:
        visible &= jnp.abs(distance) < window
    return jnp.tile(visible, (rows // BLOCK, 1))


def _reach(
    how: How, ids: Int[Array, " T"], of_keys: bool = False
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """For each block of queries, the first block of keys to look at, and the one behind the last.

    With `of_keys`, for each block of keys the queries that look there.
    """
    causal, window, *_ = how
    place = jnp.arange(len(ids))
    begins = jnp.concatenate([jnp.array([True]), ids[1:] != ids[:-1]])
    ends = jnp.concatenate([begins[1:], jnp.array([True])])
    start = jax.lax.cummax(jnp.where(begins, place, 0))[::BLOCK]
    end = jax.lax.cummin(jnp.where(ends, place, len(ids)), reverse=True)[BLOCK - 1 :: BLOCK]
    low, high = place[::BLOCK], place[BLOCK - 1 :: BLOCK]
    if window is not None:
        start, end = jnp.maximum(start, low - window + 1), jnp.minimum(end, high + window - 1)
    if causal and of_keys:
        start = low
    elif causal:
        end = high
    return start // BLOCK, end // BLOCK + 1
