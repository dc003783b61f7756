"""cuDNN's attention: its kernels against the plain sum where they can run, and what it is told."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    CASES,
    compared_on_its_device,
    noise,
    sample_lengths,
    segment_ids,
    with_gradients,
)
from jax._src.cudnn import fused_attention_stablehlo
from tiny_llava import assert_close

from astrollava_jax.models import cudnn
from astrollava_jax.models.attention import KERNELS, attention, native
from astrollava_jax.sharding import MeshConfig


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("kernel", ["cudnn", "cudnn_packed"])
@pytest.mark.parametrize("case", ["causal", "causal, a small window", "both ways, a window"])
def test_cudnn_and_its_gradients_are_those_of_the_einsum(kernel, case, kv_heads):
    compared_on_its_device(kernel, "cudnn", kv_heads, **CASES[case])


@pytest.mark.gpu
@pytest.mark.parametrize("length", [577, 256])
def test_cudnn_for_towers_and_its_gradients_are_those_of_the_einsum(length):
    if native(jax.devices()[0]) != "cudnn":
        pytest.skip(f"cudnn is not made for {jax.devices()[0].device_kind}")
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(3, length, 4, 64))) for _ in range(4))
    wide = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v)]
    with jax.default_matmul_precision("highest"):
        expected = with_gradients("xla", None, weights, causal=False)(*wide)
    arrays = [x.astype(jnp.bfloat16) for x in wide]
    found = with_gradients("cudnn_whole", None, weights, causal=False)(*arrays)
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours.astype(jnp.float32), theirs, what, 2e-2)


def as_cudnn_says(q, k, v, _, __, lengths, more, starts, others, *, scale, **how):
    """What the kernel's documentation says it gives; nothing where it is told of no sample."""
    assert lengths is more and starts is others
    assert how["mask_type"].name == "PADDING_CAUSAL"
    place = jnp.arange(q.shape[1])[:, None]
    begins, counted = starts[:, None, :-1], lengths[:, None]
    inside = (begins >= 0) & (place >= begins) & (place < begins + counted)
    known = jnp.where(inside.any(-1), 1 + inside.argmax(-1), 0)
    window = how["sliding_window_length"]
    found = attention(q, k, v, known, causal=True, window=window, scale=scale)
    return jnp.where(known[..., None, None] > 0, found, jnp.nan)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cudnn_is_told_of_samples_only_where_jax_says_rightly_where_their_keys_lie(kv_heads):
    """Offsets count numbers: positions times the heads of queries, and those of keys."""
    q, k = jnp.zeros((2, 8, 4, 16)), jnp.zeros((2, 8, kv_heads, 16))
    lengths, starts = jnp.array([[5, 3], [8, -1]]), jnp.array([[0, 5, -1], [0, -1, -1]])
    fix = fused_attention_stablehlo._fix_seqlen_offsets
    _, _, of_q, of_k = fix(lengths, lengths, starts, starts, q, k)
    np.testing.assert_array_equal(of_q.ravel()[:3], [0, 5 * 4 * 16, 8 * 4 * 16])
    right = of_k.ravel()[:3].tolist() == [0, 5 * kv_heads * 16, 8 * kv_heads * 16]
    assert cudnn.can_pack(4, kv_heads) == right


def test_cudnn_has_a_bias_where_it_cannot_be_told_of_samples(monkeypatch):
    monkeypatch.setattr(cudnn, "can_pack", lambda heads, key_heads: False)
    monkeypatch.setattr(cudnn, "gather_packed", None)
    seen = []

    def as_jax_does(q, k, v, *, mask, is_causal, scale, implementation):
        seen.append(implementation)
        return jnp.zeros_like(q)

    monkeypatch.setattr(jax.nn, "dot_product_attention", as_jax_does)
    arrays = [noise(heads, seed, 8) for heads, seed in ((4, 0), (2, 1), (2, 2))]
    packed = functools.partial(KERNELS["cudnn_packed"].gather, lengths=sample_lengths())
    packed(*arrays, jnp.asarray(segment_ids()), window=None, scale=1.0, softcap=None, causal=True)
    assert seen == ["cudnn"]


@pytest.mark.parametrize("window", [None, 3])
def test_cudnn_is_told_of_every_position_by_the_lengths_of_samples(window, monkeypatch):
    monkeypatch.setattr(cudnn, "can_pack", lambda heads, key_heads: True)
    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", as_cudnn_says)
    arrays = [noise(heads, seed, 8) for heads, seed in ((4, 0), (2, 1), (2, 2))]
    expected = attention(*arrays, jnp.asarray(segment_ids()), window=window)
    for mesh in (None, MeshConfig(data=2, fsdp=2).build(jax.devices()[:4])):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            how = {"window": window, "scale": 8**-0.5, "softcap": None, "causal": True}
            packed = KERNELS["cudnn_packed"].gather
            found = jax.jit(functools.partial(packed, **how))(
                *arrays, jnp.asarray(segment_ids()), lengths=sample_lengths()
            )
        assert_close(found, expected, "gathered", 1e-5)


def test_more_numbers_than_its_offsets_count_are_refused():
    """256 rows of LLaVA-1.5-7B on one device: offsets of 32 bits would begin anew."""
    q = jax.ShapeDtypeStruct((256, 2048, 32, 128), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((256, 3), jnp.int32)
    packed = functools.partial(cudnn.gather_packed, window=None, scale=1.0)
    with pytest.raises(ValueError, match="256 rows of 2048 positions are 2,147,483,648 numbers"):
        jax.eval_shape(packed, q, q, q, lengths)
