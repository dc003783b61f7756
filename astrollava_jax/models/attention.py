"""Attention: one function, several kernels, one meaning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention_mask(
    segment_ids: Int[Array, "B T"], *, causal: bool, window: int | None = None
) -> Bool[Array, "B T T"]:
    """True where a query (row) may look at a key (column): same sample, not later, not too far.

    ```
    segment_ids 1 1 2 2 0     1 . . . .
                              1 1 . . .
                              . . 1 . .
                              . . 1 1 .
                              . . . . 1     padding looks at itself, so that softmax is finite
    ```
    Positions inside a sample are consecutive, so distance in the row is distance in the sample.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    place = jnp.arange(segment_ids.shape[1])
    distance = place[:, None] - place[None, :]
    if causal:
        same &= distance >= 0
    if window is not None:
        same &= jnp.abs(distance) < window
    return same


@jax.named_scope("attention")
def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """What each query gathers from the keys of its own sample.

    N is a multiple of K: neighbouring queries share a key. Scores and softmax are float32; the
    result has the dtype of `q`.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: which sample each position belongs to; all to one unless given.
        causal: whether a query sees nothing later.
        window: how many positions a query sees, its own included; all unless given.
        softcap: what no score passes.
        scale: of the scores; 1 / sqrt(H) unless given.
    """
    mask = None
    if causal or window is not None or segment_ids is not None:
        one_sample = jnp.ones(q.shape[:2], jnp.int32)
        mask = attention_mask(
            one_sample if segment_ids is None else segment_ids, causal=causal, window=window
        )
    return masked_attention(q, k, v, mask, softcap=softcap, scale=scale)


def masked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None,
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """What each query gathers from the keys that the mask lets it see: all of them without one."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])  # B T K G H
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(q.shape)
