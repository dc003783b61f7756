"""Flash attention on a TPU: JAX's own Pallas kernel, told what this package means by attention.

Scores exist a tile at a time, so that a row costs memory by its length and not by its square. Tiles
that the causal mask or the window leaves empty are not computed; the samples of a row are told
apart inside the kernel.
"""

from typing import Any

import jax
from jaxtyping import Array, Float, Int

TILES = (1024, 512, 256, 128)
"""Sides of a tile of scores, in positions: the first that divides the row's length is taken.

The larger, the less often keys and values are read again; at 1024 a quarter of a causal row of 2048
is skipped. One of 2048 would skip nothing there, and takes minutes to compile. The kernel's lanes
hold 128 positions: there is none smaller.
"""

LANES = 128
"""Positions that one instruction of the kernel works on."""


def lacks(q: Any) -> str | None:
    """What these queries, `[B, T, N, H]`, would need that the kernel does not have."""
    length = q.shape[1]
    if length % LANES:
        return f"its tiles need rows of a multiple of {LANES} positions, found {length}"
    return None


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
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """What `attention` gives, for the rows and heads of one device.

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
        interpret: compute the tiles by ordinary operations, on any device: for comparison only.
    """
    pallas, heads, length = _pallas(), q.shape[2], q.shape[1]
    tile = next(tile for tile in TILES if length % tile == 0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([_mask(length, causal, window)] * heads),
        block_sizes=_tiles(tile),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=saved_as,
        interpret=interpret,
    )

    def row(
        q: Float[Array, "N T H"],
        k: Float[Array, "K T H"],
        v: Float[Array, "K T H"],
        segment_ids: Int[Array, " T"],
    ) -> Float[Array, "N T H"]:
        return kernel(q, k, v, pallas.SegmentIds(segment_ids, segment_ids))

    # The kernel has no scale of its own.
    q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
    return jax.vmap(row)(q, k, v, segment_ids).swapaxes(1, 2)


def _pallas() -> Any:
    """JAX's kernel; who has no TPU need not load it, nor have a JAX that has it."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def _mask(length: int, causal: bool, window: int | None) -> Any:
    pallas, square = _pallas(), (length, length)
    if window is not None:
        return pallas.LocalMask(square, (window - 1, 0 if causal else window - 1), 0)
    return pallas.CausalMask(square) if causal else pallas.FullMask(square)


def _tiles(tile: int) -> Any:
    """One size for all: forward, and the two kernels of the backward pass.

    The fused kernel for both gradients would write a part of dQ for every column of tiles, and add
    them up outside.
    """
    return _pallas().BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
