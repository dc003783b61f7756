"""Flash attention by cuDNN: what it can do, and its form for samples side by side."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SINCE = (8, 0)
"""The compute capability, that of Ampere, which it needs."""

PACKED_SINCE = (9, 0)
"""That of Hopper, from which on it can be told of samples."""

SHARED_KEYS_SINCE = (0, 11, 1)
"""The version of JAX from which on samples' keys are found where several queries share one. Older
ones count their offsets by the heads of queries: the kernel reads other samples, or nothing."""


MOST_NUMBERS = 2**31
"""Of the queries of one device: JAX tells cuDNN of samples by offsets of 32 bits."""


def lacks(q: Any, softcap: float | None) -> str | None:
    """What these queries and their soft cap would need that it does not have."""
    if q.shape[1] % 2 and lacks_of_heads(q, softcap) is None:
        return f"it needs rows of an even length, found {q.shape[1]}"
    return lacks_of_heads(q, softcap)


def lacks_of_heads(q: Any, softcap: float | None) -> str | None:
    """The same, whatever the length."""
    if softcap is not None:
        return f"it has no soft cap of the scores, and this decoder's is {softcap}"
    if jnp.dtype(q.dtype).itemsize != 2:
        return f"it computes in bfloat16, found {jnp.dtype(q.dtype).name}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"its heads have up to 128 numbers, a multiple of 8; found {q.shape[-1]}"
    return None


def can_pack(heads: int, key_heads: int) -> bool:
    """Whether this JAX can tell it of samples with so many heads of queries and of keys."""
    return heads == key_heads or jax.__version_info__ >= SHARED_KEYS_SINCE


def unpacked(heads: int, key_heads: int) -> str | None:
    """What to tell where samples are kept apart by a bias, since it cannot be told of them."""
    if can_pack(heads, key_heads):
        return None
    least = ".".join(str(part) for part in SHARED_KEYS_SINCE)
    return (
        f"attention by cudnn computes what lies between the samples of a row too: {heads} heads of "
        f"queries share {key_heads} of keys, whose samples JAX {jax.__version__} does not find; "
        f"{least} does"
    )


def gather_whole(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """What every query gathers from all keys of its row, for the rows and heads of one device."""
    rows, length = q.shape[:2]
    counted = jnp.full(rows, length, jnp.int32)
    # JAX wants an even length of what is learned from.
    q, k, v = (jnp.pad(x, ((0, 0), (0, length % 2), (0, 0), (0, 0))) for x in (q, k, v))
    found = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=counted, key_value_seq_lengths=counted, scale=scale,
        implementation="cudnn",
    )  # fmt: skip
    return found[:, :length]


def gather_packed(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    lengths: Int[Array, "B S"],
    *,
    window: int | None,
    scale: float,
) -> Float[Array, "B T N H"]:
    """What causal `attention` gives, for the rows and heads of one device.

    Nothing that lies between two samples is computed. `jax.nn` has no way to tell cuDNN of them, so
    that what lies under it is called.

    Args:
        q: queries.
        k: keys.
        v: values.
        lengths: how many positions each sample takes, one after the other; 0 for none.
        window: how many positions a query sees, its own included; None = all.
        scale: of the scores.

    Raises:
        ValueError: if there are more numbers than its offsets can count.
    """
    # Private to JAX: only who has need of it hangs on where it is.
    from jax._src.cudnn import fused_attention_stablehlo

    if q.size >= MOST_NUMBERS:
        raise ValueError(
            f"attention by cudnn: samples are found by offsets below {MOST_NUMBERS:,}, and the "
            f"queries of {q.shape[0]} rows of {q.shape[1]} positions are {q.size:,} numbers: "
            "compute fewer rows at a time (batch.rows_per_device)"
        )
    # The end of a row is a sample too: what cuDNN is not told of, it leaves as it finds it.
    rest = q.shape[1] - jnp.sum(lengths, axis=1, keepdims=True)
    lengths = jnp.concatenate([lengths, rest], axis=1).astype(jnp.int32)
    starts = jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - lengths
    lengths, starts = (jnp.where(lengths > 0, x, -1) for x in (lengths, starts))
    starts = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    how: Any = {
        "mask_type": fused_attention_stablehlo.MaskType.PADDING_CAUSAL,
        "sliding_window_length": window,
        "scale": scale,
    }
    found: Any = fused_attention_stablehlo.dot_product_attention(
        q, k, v, None, None, lengths, lengths, starts, starts, **how
    )
    return found
