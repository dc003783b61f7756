"""A base and its adapters as one model: what is read, in which dtype, and what does not fit."""

import numpy as np
import pytest

from astrollava_jax.models.lora import LORA_A
from astrollava_jax.weights.adapted import Adapted, Lora
from astrollava_jax.weights.directory import open_model

O_PROJ, UP = "llm/layers/attn/o_proj", "llm/layers/mlp/up_proj"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def base(hf):
    return open_model(hf[0])


@pytest.fixture(scope="module")
def lora() -> Lora:
    return Lora(
        rank=3,
        alpha=1.5,
        arrays={
            f"{O_PROJ}/lora_a": noise(2, 4, 12, 3),
            f"{O_PROJ}/lora_b": noise(2, 3, 48),
            f"{UP}/lora_a": noise(2, 48, 3),
            f"{UP}/lora_b": noise(2, 3, 80),
        },
    )


def test_a_kernel_is_the_base_and_half_the_product_rounded_once(base, lora):
    model = Adapted(base, lora, "here")
    a, b = lora.arrays[f"{O_PROJ}/lora_a"], lora.arrays[f"{O_PROJ}/lora_b"]
    added = np.einsum("lnhr,lrd->lnhd", a.astype(np.float64), b) / 2
    expected = base.read(f"{O_PROJ}/kernel").astype(np.float64) + added
    np.testing.assert_allclose(model.kernels[f"{O_PROJ}/kernel"], expected, rtol=1e-5, atol=1e-5)
    found = model.read(f"{O_PROJ}/kernel")
    assert found.dtype == np.float16
    # A number halfway between two of float16 may fall to either side.
    assert (found == expected.astype(np.float16)).mean() > 0.999


def test_a_slice_is_that_of_the_whole_and_reads_no_more(base, lora, monkeypatch):
    model, asked = Adapted(base, lora, "here"), []
    whole = model.read(f"{O_PROJ}/kernel")
    read = base.read
    monkeypatch.setattr(base, "read", lambda *what: asked.append(what) or read(*what))
    index = (slice(1, 2), slice(0, 2), slice(3, 12), slice(10, 40))
    np.testing.assert_array_equal(model.read(f"{O_PROJ}/kernel", index), whole[index])
    assert asked == [(f"{O_PROJ}/kernel", index)]


def test_everything_else_is_the_bases(base, lora):
    model = Adapted(base, lora, "here")
    other = "llm/layers/mlp/gate_proj/kernel"
    np.testing.assert_array_equal(model.read(other), base.read(other))
    assert model.fingerprint(other) == base.fingerprint(other)
    assert model.fingerprint(f"{UP}/kernel") != base.fingerprint(f"{UP}/kernel")
    assert model.folder_of(other) == base.folder_of(other)
    assert model.folder_of(f"{UP}/kernel") == "here"
    assert model.config == base.config and model.lora.modules == [O_PROJ, UP]


def test_adapters_that_do_not_fit_are_told_together(base, lora):
    arrays = dict(lora.arrays) | {"llm/layers/mlp/other/lora_a": noise(2, 3, 3)}
    del arrays[f"{UP}/lora_b"]
    with pytest.raises(ValueError) as error:
        Adapted(base, Lora(3, 1.5, arrays), "here")
    told = str(error.value)
    assert "here: its adapters do not fit" in told and f"{UP}: no lora_b" in told
    assert "llm/layers/mlp/other: the model has no such linear map" in told


def test_an_adapter_of_another_shape_is_told(base, lora):
    arrays = dict(lora.arrays) | {f"{UP}/{LORA_A}": noise(2, 47, 3)}
    model = Adapted(base, Lora(3, 1.5, arrays), "here")
    with pytest.raises(ValueError, match=r"lora_a \[2, 48, 3\].*found \[2, 47, 3\]"):
        model.read(f"{UP}/kernel")
