"""Every kernel of attention against the plain sum, on one device and on a mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    CASES,
    LENGTH,
    compared_on_its_device,
    noise,
    segment_ids,
    with_gradients,
)
from tiny_llava import assert_close

from astrollava_jax.models import blocks
from astrollava_jax.models.attention import KERNELS, attention, attention_mask, choose, native
from astrollava_jax.sharding import MeshConfig, named


def plain_sum(q, k, v, ids, *, causal=True, window=None, softcap=None, scale=None) -> np.ndarray:
    """Attention by its definition: a query at a time, over the keys that it may see."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group, found = q.shape[2] // k.shape[2], np.zeros(q.shape)
    for row, place in np.ndindex(q.shape[:2]):
        distance = place - np.arange(q.shape[1])
        seen = ids[row] == ids[row, place]
        seen &= distance >= 0 if causal else True
        seen &= np.abs(distance) < window if window else True
        for head in range(q.shape[2]):
            keys, values = (x[row, seen, head // group] for x in (k, v))
            scores = keys @ q[row, place, head] * (scale or q.shape[-1] ** -0.5)
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            weights = np.exp(scores - scores.max())
            found[row, place, head] = weights / weights.sum() @ values
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_einsum_is_attention_by_its_definition(case):
    q, k, v, ids = noise(4, 0), noise(2, 1), noise(2, 2), segment_ids()
    with jax.default_matmul_precision("highest"):
        found = attention(q, k, v, jnp.asarray(ids), **CASES[case])
    assert_close(found, plain_sum(q, k, v, ids, **CASES[case]), "gathered", 1e-5)


@pytest.mark.parametrize(
    ("case", "heads"),
    [*((case, (4, 2)) for case in CASES), ("causal", (4, 4)), ("a window and a cap", (4, 1))],
)
def test_splash_and_its_gradients_are_those_of_the_einsum(case, heads, monkeypatch):
    monkeypatch.setattr("astrollava_jax.models.splash.TILES", (128,))
    queries, keys = heads
    arrays = noise(queries, 0), noise(keys, 1), noise(keys, 2)
    ids, weights = jnp.asarray(segment_ids()), noise(queries, 3)
    with jax.default_matmul_precision("highest"):
        expected = with_gradients("xla", ids, weights, **CASES[case])(*arrays)
        found = with_gradients("interpreted", ids, weights, **CASES[case])(*arrays)
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours, theirs, what, 1e-5)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_splash_takes_heads_of_any_width(head_dim):
    arrays = [noise(2, seed, head_dim) for seed in range(3)]
    ids, weights = jnp.asarray(segment_ids()), noise(2, 3, head_dim)
    with jax.default_matmul_precision("highest"):
        expected = with_gradients("xla", ids, weights)(*arrays)
        found = with_gradients("interpreted", ids, weights)(*arrays)
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours, theirs, what, 1e-5)


@pytest.mark.parametrize(
    ("case", "heads", "length"),
    [
        ("causal", (4, 2), 200),
        ("a window and a cap", (4, 1), LENGTH),
        ("both ways, a window", (2, 2), LENGTH),
    ],
)
def test_blocks_and_their_gradients_are_those_of_the_einsum(case, heads, length):
    queries, keys = heads
    arrays = [noise(n, seed)[:, :length] for seed, n in enumerate((queries, keys, keys))]
    ids, weights = jnp.asarray(segment_ids())[:, :length], noise(queries, 3)[:, :length]
    with jax.default_matmul_precision("highest"):
        expected = with_gradients("xla", ids, weights, **CASES[case])(*arrays)
        found = with_gradients("blocks", ids, weights, **CASES[case])(*arrays)
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours, theirs, what, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_blocks_that_hold_no_pair_are_passed_over(case, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 32)
    how = {"causal": True, "window": None} | CASES[case]
    causal, window = how["causal"], how["window"]
    for ids in segment_ids():
        pairs = attention_mask(jnp.asarray(ids)[None], causal=causal, window=window)[0]
        held = np.asarray(pairs).reshape(8, 32, 8, 32).any(axis=(1, 3))
        for of_keys, wanted in ((False, held), (True, held.T)):
            first, last = blocks._reach((causal, window, None, 1.0, ""), jnp.asarray(ids), of_keys)
            reached = [[a <= other < b for other in range(8)] for a, b in zip(first.tolist(), last)]
            assert np.array_equal(reached, wanted)


@pytest.mark.parametrize(
    ("axes", "kernel"),
    [((2, 2, 2), "interpreted"), ((1, 4, 1), "interpreted"), ((2, 2, 2), "blocks")],
    ids=str,
)
def test_on_a_mesh_each_device_does_its_own_rows_and_heads(axes, kernel):
    data, fsdp, tensor = axes
    mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor).build(
        jax.devices()[: data * fsdp * tensor]
    )
    how = {"window": 100, "softcap": 3.0}
    arrays = noise(4, 0), noise(2, 1), noise(2, 2)
    ids, weights = jnp.asarray(segment_ids()), noise(4, 3)
    with jax.default_matmul_precision("highest"):
        expected = with_gradients("xla", ids, weights, **how)(*arrays)
        with jax.set_mesh(mesh):
            layout = named(("batch", "length", "heads", "head_dim"), mesh)
            placed = [jax.device_put(array, layout) for array in arrays]
            function = with_gradients(kernel, ids, weights, **how)
            found = function(*placed)
            text = function.lower(*placed).compile().as_text()
    assert found[0].sharding.is_equivalent_to(layout, 4)
    assert "all-gather" not in text
    for what, ours, theirs in zip(("gathered", "of q", "of k", "of v"), found, expected):
        assert_close(ours, theirs, what, 1e-5)


def test_for_a_tpu_the_kernels_are_in_the_program_and_no_square_of_scores():
    """Lowered for a machine that is not there: three kernels, which know the samples."""
    arrays = [jax.ShapeDtypeStruct((2, 2048, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]
    ids = jax.ShapeDtypeStruct((2, 2048), jnp.int32)

    def total(q, k, v, ids):
        return jnp.sum(attention(q, k, v, ids, kernel="splash").astype(jnp.float32))

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))
    text = gradients.trace(*arrays, ids).lower(lowering_platforms=("tpu",)).as_text()
    for kernel in ("fwd_segmented_residuals", "dq_segmented_no", "dkv_segmented_no"):
        assert text.count(f'kernel_name = "splash_mha_{kernel}') == 1
    assert "2048x2048" not in text


@pytest.mark.tpu
@pytest.mark.parametrize("case", CASES)
def test_splash_on_a_tpu_and_its_gradients_are_those_of_the_einsum(case):
    compared_on_its_device("splash", "splash", **CASES[case])


def device(platform: str, kind: str = "some device", **more: str):
    return types.SimpleNamespace(platform=platform, device_kind=kind, **more)


def queries(length: int = 2048, head_dim: int = 128, dtype: str = "bfloat16"):
    return jax.ShapeDtypeStruct((8, length, 32, head_dim), dtype)


TPU, H200, CPU = device("tpu", "TPU v5 lite"), device("gpu", "NVIDIA H200"), device("cpu", "cpu")


def test_each_device_has_its_kernel_and_need_not_be_there():
    assert native(TPU) == "splash" and native(H200) == "cudnn" and native(CPU) == "blocks"
    assert native(device("gpu", "AMD Instinct MI300X")) == "xla"
    for own in (TPU, H200, CPU):
        assert choose("auto", own, queries(), 32, None) == (native(own), None)
        assert choose("xla", own, queries(), 32, None) == ("xla", None)
    short = queries(length=blocks.SHORTEST - 1)  # faster whole
    assert choose("auto", CPU, short, 32, None) == ("xla", None)
    assert choose("blocks", CPU, short, 32, None) == ("blocks", None)


@pytest.mark.parametrize(
    ("own", "asked", "softcap", "told"),
    [
        (TPU, queries(length=2000), None, "rows of a multiple of 128 positions, found 2000"),
        (H200, queries(), 50.0, "no soft cap of the scores, and this decoder's is 50.0"),
        (H200, queries(dtype="float32"), None, "bfloat16, found float32"),
        (H200, queries(head_dim=256), None, "up to 128 numbers, a multiple of 8; found 256"),
        (H200, queries(head_dim=68), None, "up to 128 numbers, a multiple of 8; found 68"),
        (H200, queries(length=333), None, "an even length, found 333"),
    ],
)
def test_what_a_kernel_cannot_do_is_done_by_xla_with_a_note_or_refused(own, asked, softcap, told):
    kernel, note = choose("auto", own, asked, 32, softcap)
    assert kernel == "xla" and note is not None and told in note
    with pytest.raises(ValueError, match="cannot do this") as refused:
        choose(native(own), own, asked, 32, softcap)
    assert told in str(refused.value)
    with pytest.raises(ValueError) as refused:
        q = jnp.zeros((1, *asked.shape[1:]), asked.dtype)
        attention(q, q, q, softcap=softcap, kernel=native(own))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [("7.0", "xla"), ("7.5", "xla"), ("8.0", "cudnn"), ("9.0", "cudnn"), ("10.0", "cudnn")],
)
def test_an_nvidia_gpu_too_old_for_cudnn_has_xla_with_a_note(capability, kernel):
    own = device("gpu", "NVIDIA T4", compute_capability=capability)
    assert native(own) == kernel
    found, note = choose("auto", own, queries(), 32, None)
    packed = capability in ("9.0", "10.0")
    assert found == ("cudnn_packed" if packed else kernel)
    assert (note is None) == (kernel == "cudnn")
    assert choose("xla", own, queries(), 32, None) == ("xla", None)
    if note is not None:
        assert f"needs a compute capability of at least 8.0: NVIDIA T4 has {capability}" in note
        with pytest.raises(ValueError, match="cudnn does not run on NVIDIA T4; say auto"):
            choose("cudnn", own, queries(), 32, None)


@pytest.mark.parametrize("wanted", ["auto", "cudnn"])
def test_where_jax_does_not_find_shared_keys_a_note_says_what_that_costs(wanted, monkeypatch):
    hopper = device("gpu", "NVIDIA H100", compute_capability="9.0")
    ampere = device("gpu", "NVIDIA A100", compute_capability="8.0")
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert choose(wanted, hopper, queries(), 32, None) == ("cudnn_packed", None)
    assert choose(wanted, ampere, queries(), 8, None) == ("cudnn", None)  # never told of samples
    kernel, note = choose(wanted, hopper, queries(), 8, None)
    assert kernel == "cudnn" and note is not None
    assert "32 heads of queries share 8 of keys" in note and "JAX 0.10.2" in note
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    assert choose(wanted, hopper, queries(), 8, None) == ("cudnn_packed", None)


def test_a_kernel_of_another_device_is_refused():
    for wanted, own in (("splash", CPU), ("cudnn", TPU), ("blocks", H200)):
        with pytest.raises(ValueError, match=f"{wanted} does not run on {own.device_kind}"):
            choose(wanted, own, queries(), 32, None)
    names = {"xla", "splash", "cudnn", "cudnn_packed", "cudnn_whole", "blocks", "interpreted"}
    assert set(KERNELS) == names
