"""Attention: one function, several kernels, one meaning."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from astrollava_jax.models import blocks, cudnn, splash
from astrollava_jax.models.remat import ATTENTION
from astrollava_jax.sharding import spec

Kernel = Literal["xla", "splash", "cudnn", "cudnn_packed", "cudnn_whole", "blocks", "interpreted"]
"""A row of `KERNELS`."""

Choice = Literal["auto", "xla", "splash", "cudnn", "blocks"]
"""What a run may say; `auto` is the kernel of the device, or XLA where that cannot do it."""


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
    lengths: Int[Array, "B S"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    kernel: Kernel = "xla",
) -> Float[Array, "B T N H"]:
    """What each query gathers from the keys of its own sample.

    N is a multiple of K: neighbouring queries share a key. Scores and softmax are float32; the
    result has the dtype of `q`.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: which sample each position belongs to; all to one unless given.
        lengths: how many positions the samples of a row take, one after the other, 0 for none: what
            `segment_ids` say too, for a kernel that does not look at what lies between samples.
        causal: whether a query sees nothing later.
        window: how many positions a query sees, its own included; all unless given.
        softcap: what no score passes.
        scale: of the scores; 1 / sqrt(H) unless given.
        kernel: what computes it.

    Raises:
        ValueError: if the kernel cannot do this.
    """
    row = KERNELS[kernel]
    missing = row.lacks(q, softcap)
    if missing is not None:
        raise ValueError(f"attention by {kernel}: {missing}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    how: dict[str, Any] = {"lengths": lengths} if row.takes_lengths else {}
    return row.gather(
        q, k, v, segment_ids, causal=causal, window=window, softcap=softcap, scale=scale, **how
    )


def _einsum(
    q: Array, k: Array, v: Array, segment_ids: Array | None,
    *, causal: bool, window: int | None, softcap: float | None, scale: float,
) -> Array:  # fmt: skip
    """All scores of a row at once, by ordinary operations."""
    mask = None
    if causal or window is not None or segment_ids is not None:
        mask = attention_mask(_ids(q, segment_ids), causal=causal, window=window)
    gathered = masked_attention(q, k, v, mask, softcap=softcap, scale=scale)
    return checkpoint_name(gathered, ATTENTION)


def _splash(
    q: Array, k: Array, v: Array, segment_ids: Array | None, *, interpret: bool = False, **how: Any
) -> Array:
    """The Pallas kernel, on each device's own rows and heads."""
    local = functools.partial(splash.gather, saved_as=ATTENTION, interpret=interpret, **how)
    return _on_shards(local, q, k, v, _ids(q, segment_ids))


def _cudnn(
    q: Array, k: Array, v: Array, segment_ids: Array | None,
    *, causal: bool, window: int | None, softcap: float | None, scale: float,
) -> Array:  # fmt: skip
    """Flash attention by cuDNN, on each device's own rows and heads.

    The samples of a row are told apart by a bias, `[B, 1, T, T]` for all heads.
    """
    assert softcap is None

    def local(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
        mask = attention_mask(segment_ids, causal=causal, window=window)[:, None]
        # Both say it: the tiles above the diagonal are then not computed.
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
        )

    return _on_shards(local, q, k, v, _ids(q, segment_ids))


def _cudnn_packed(
    q: Array, k: Array, v: Array, segment_ids: Array | None,
    *, causal: bool, window: int | None, softcap: float | None, scale: float,
    lengths: Array | None,
) -> Array:  # fmt: skip
    """The same, told how long each sample is; by a bias where that is not known or not heard."""
    heads = q.shape[2], k.shape[2]
    if lengths is None or not lengths.shape[1] or not causal or not cudnn.can_pack(*heads):
        how: Any = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
        return _cudnn(q, k, v, segment_ids, **how)

    local = functools.partial(cudnn.gather_packed, window=window, scale=scale)
    return _on_shards(local, q, k, v, lengths)


def _cudnn_whole(
    q: Array, k: Array, v: Array, segment_ids: Array | None,
    *, causal: bool, window: int | None, softcap: float | None, scale: float,
) -> Array:  # fmt: skip
    """The same for towers: every position sees every other."""
    assert segment_ids is None and not causal and window is None and softcap is None
    local = functools.partial(cudnn.gather_whole, scale=scale)
    return _on_shards(local, q, k, v)


def _blocks(q: Array, k: Array, v: Array, segment_ids: Array | None, **how: Any) -> Array:
    """By ordinary operations, without the blocks that hold nothing; each device its own."""
    local = functools.partial(blocks.gather, saved_as=ATTENTION, **how)
    return _on_shards(local, q, k, v, _ids(q, segment_ids))


def _ids(q: Array, segment_ids: Array | None) -> Array:
    return jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids


def _on_shards(local: Any, q: Array, k: Array, v: Array, *samples: Array) -> Array:
    """Rows and heads know nothing of each other: each device does its own, where there is a mesh.

    The compiler cannot split a kernel that it knows nothing of.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, *samples)
    heads = spec(("batch", "length", "heads", "head_dim"), mesh)
    places = (heads,) * 3 + (spec(("batch", None), mesh),) * len(samples)
    split = jax.shard_map(local, in_specs=places, out_specs=heads, check_vma=False)
    return split(q, k, v, *samples)


class Row(NamedTuple):
    """One kernel."""

    gather: Callable[..., Array]
    """As `attention`, with everything given but `segment_ids`."""
    lacks: Callable[[Any, float | None], str | None]
    """What these queries and their soft cap would need that it does not have."""
    takes_lengths: bool = False
    """Whether it has a use for the lengths of samples."""


KERNELS: dict[Kernel, Row] = {
    "xla": Row(_einsum, lambda q, softcap: None),  # anywhere; memory by the square of the length
    "splash": Row(_splash, lambda q, softcap: splash.lacks(q)),  # TPU
    "cudnn": Row(_cudnn, cudnn.lacks),  # NVIDIA
    "cudnn_packed": Row(_cudnn_packed, cudnn.lacks, takes_lengths=True),  # NVIDIA, since Hopper
    "cudnn_whole": Row(_cudnn_whole, cudnn.lacks_of_heads),  # NVIDIA, towers
    "blocks": Row(_blocks, lambda q, softcap: None),  # CPU
    "interpreted": Row(  # splash for those without a TPU: slow, for comparison
        functools.partial(_splash, interpret=True), lambda q, softcap: splash.lacks(q)
    ),
}
"""What computes attention. All give the same numbers, but for their last bits."""


def of_towers(kernel: Kernel) -> Kernel:
    """What computes a tower's attention beside a decoder's kernel.

    The others are made for long rows of several samples.
    """
    return "cudnn_whole" if kernel in ("cudnn", "cudnn_packed") else "xla"


def native(device: Any) -> Kernel:
    """The kernel that is made for a device, which need not be there."""
    if device.platform in ("tpu", "cpu"):
        return "splash" if device.platform == "tpu" else "blocks"
    return "cudnn" if _is_nvidia(device) and _too_old(device) is None else "xla"


def _is_nvidia(device: Any) -> bool:
    return device.platform == "gpu" and "NVIDIA" in device.device_kind


def _too_old(device: Any) -> str | None:
    """What to tell of a GPU that cuDNN's flash attention is not made for."""
    capability = _capability(device)
    if not _is_nvidia(device) or capability is None or capability >= cudnn.SINCE:
        return None
    least = ".".join(str(part) for part in cudnn.SINCE)
    return (
        f"attention is computed by XLA, for cudnn needs a compute capability of at "
        f"least {least}: {device.device_kind} has {device.compute_capability}"
    )


def _capability(device: Any) -> tuple[int, ...] | None:
    """Of an NVIDIA GPU, as numbers; None where the device does not tell."""
    told = getattr(device, "compute_capability", None)
    return None if told is None else tuple(int(part) for part in told.split("."))


def choose(
    wanted: Choice, device: Any, q: Any, key_heads: int, softcap: float | None
) -> tuple[Kernel, str | None]:
    """The kernel for a decoder on a device, and what to tell of it.

    Args:
        wanted: by name, or `auto`: the device's own, or XLA where that cannot do it.
        device: one that the program is compiled for.
        q: shape `[B, T, N, H]` and dtype of the queries.
        key_heads: K, of which N is a multiple.
        softcap: of the scores.

    Raises:
        ValueError: if a kernel that is named cannot do it there.
    """
    own = native(device)
    named = wanted not in ("auto", "xla")
    if named and wanted != own:
        raise ValueError(f"attention: {wanted} does not run on {device.device_kind}; say auto")
    if wanted == "xla":
        return "xla", None
    if own == "blocks" and not named and q.shape[1] < blocks.SHORTEST:
        return "xla", None
    missing = KERNELS[own].lacks(q, softcap)
    if missing is None:
        if own != "cudnn" or (_capability(device) or (0,)) < cudnn.PACKED_SINCE:
            return own, _too_old(device)
        note = cudnn.unpacked(q.shape[2], key_heads)
        return "cudnn_packed" if note is None else own, note
    if named:
        raise ValueError(f"attention: {own} cannot do this: {missing}; change that, or say auto")
    return "xla", f"attention is computed by XLA, for {own} cannot do it: {missing}"


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
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    # Heads in front of positions, as products want them: scores, which are much more than queries,
    # would be turned round otherwise (half of the time of a tower's attention on a CPU).
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = jnp.einsum("BKRH,BSKH->BKRS", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, N // K, T, S) * (H**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, -1, S)
    found = jnp.einsum("BKRS,BSKH->BKRH", weights, v).reshape(B, K, N // K, T, H)
    return found.transpose(0, 3, 1, 2, 4).reshape(q.shape)
