"""What the compiler is told for each kind of device."""

import types

import pytest

from astrollava_jax import compiler
from astrollava_jax.compiler import check, inference_options, options

HARMFUL = "xla_tpu_enable_sparse_core_collective_offload_all_reduce"
WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"


def device(platform: str, kind: str):
    return types.SimpleNamespace(platform=platform, device_kind=kind)


def test_each_kind_of_device_has_its_options_and_an_unknown_one_has_none():
    assert options(device("tpu", "TPU v5 lite")) == {WINDOWED: 1_000_000}
    assert options(device("tpu", "TPU v6 lite"))["xla_tpu_scoped_vmem_limit_kib"] == 98_304
    v5p = options(device("tpu", "TPU v5"))
    assert v5p["xla_tpu_scoped_vmem_limit_kib"] < 64 * 1024, "of v5p, a core has no more"
    assert WINDOWED not in v5p
    assert options(device("gpu", "NVIDIA H100 80GB HBM3")) == options(device("gpu", "NVIDIA H200"))
    assert options(device("gpu", "NVIDIA H200"))["xla_gpu_enable_latency_hiding_scheduler"] is True
    for one in (device("cpu", "cpu"), device("gpu", "NVIDIA H200")):
        assert "xla_disable_hlo_passes" in options(one)
    assert options(device("tpu", "TPU v9")) == {}


def test_what_was_estimated_for_training_is_not_told_where_nothing_trains():
    for accelerator in (device("tpu", "TPU v6 lite"), device("gpu", "NVIDIA H200")):
        assert inference_options(accelerator) == {}
    assert inference_options(device("cpu", "cpu")) == options(device("cpu", "cpu")) != {}


def test_a_runs_own_options_replace_those_of_the_table():
    own = {WINDOWED: 100, "xla_tpu_another": True}
    assert options(device("tpu", "TPU v5 lite"), own) == own


def test_the_tables_tell_of_no_option_that_is_denied():
    for told in compiler.OPTIONS.values():
        check(told)


def test_denied_options_are_refused_all_at_once_with_the_reason():
    with pytest.raises(ValueError) as refused:
        check({HARMFUL: True, "xla_cpu_enable_fast_math": "true", WINDOWED: 5})
    told = str(refused.value)
    assert f"{HARMFUL}: others report that it changed what a model learns" in told
    assert "xla_cpu_enable_fast_math: it lets XLA suppose that no number is NaN" in told
    assert WINDOWED not in told
    check({HARMFUL: False, "xla_cpu_enable_fast_math": "false"})
