"""What XLA is told for each kind of device, and what it is never told."""

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

import jax

Options = dict[str, bool | int | str]

_WHOLE_GATHERS: Options = {
    # Weights are gathered whole, and not piece by piece between the pieces of a product, which are
    # too thin for the chip: on 16 of v5e each multiplies along 256 numbers in place of 4096. Stage
    # 2 with 8 rows a chip, by the compiler's own estimate: 11037 permutes became gathers, and the
    # step 23% shorter; memory within 0.5 GiB.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}

_ASYNCHRONOUS_GATHERS: Options = {
    # By default every gather waits: with these 582 of 673 ran beside the products (8 chips, 4 rows
    # a chip, a step 12% shorter by estimate). Half as much time again to compile. On a TPU v5e the
    # default does the same.
    "xla_enable_async_all_gather": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}

OPTIONS: dict[str, Options] = {
    "cpu": {
        # A CPU multiplies bfloat16 as float32. XLA would turn whole stacks of layers before the
        # loop over them: twice the bytes of the model besides the model. jax 0.11.2 does not.
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    },
    "TPU v4": {},
    "TPU v5 lite": _WHOLE_GATHERS,
    # On four of v5p gathers are whole without being told.
    "TPU v5": _ASYNCHRONOUS_GATHERS
    | {
        # Products of larger tiles, out of a core's 64 MiB: 96% of the chip's peak by estimate, also
        # those that other work is fused with, which by default came to 53 to 83%. With 8 rows a
        # chip and remat mlp the step is 16% shorter; with the gathers above, which then wait 41 ms
        # in place of 158, 19%. Two to three times the time to compile.
        "xla_tpu_scoped_vmem_limit_kib": 49_152,
    },
    "TPU v6 lite": _WHOLE_GATHERS
    | _ASYNCHRONOUS_GATHERS
    | {
        # Products of larger tiles: 90% of the chip's peak in place of 70%, by estimate. Twice the
        # time to compile.
        "xla_tpu_scoped_vmem_limit_kib": 98_304,
    },
    "NVIDIA*": {
        # Gathers and reductions of one layer run beside the products of another.
        "xla_gpu_enable_latency_hiding_scheduler": True,
        # Weights and gradients travel a layer at a time and not tensor by tensor; as published for
        # Llama-2-7B on H100s. A device alone sends nothing.
        "xla_gpu_all_gather_combine_threshold_bytes": 128 << 20,
        "xla_gpu_all_reduce_combine_threshold_bytes": 128 << 20,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 64 << 20,
        # From four fifths of the memory on XLA would make what it can a second and a third time
        # beside our remat: of stage 2 on an H200 each layer's weights in bfloat16, to spare 1.7 of
        # 125 GiB.
        "xla_disable_hlo_passes": "rematerialization",
    },
}
"""Kind of device, `*` for the rest of it -> options. Estimates are of LLaVA-1.5-7B's stage 2."""

DENIED: dict[str, str] = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": (
        "others report that it changed what a model learns on TPU v6e"
    ),
    "xla_tpu_enable_sparse_core_collective_offload_*reduce_scatter": (
        "others report losses gone wrong with it"
    ),
    "xla_tpu_enable_sparse_core_reduce_scatter_v2": "others report losses gone wrong with it",
    "xla_*enable_fast_math": "it lets XLA suppose that no number is NaN, so that none is noticed",
    "xla_*enable_fast_min_max": "it loses NaNs, so that a step with bad numbers looks good",
    "xla_backend_extra_options": "it reaches past this list",
}
"""Options that nobody may give, by their names -> why. An option may still be turned off."""


def options(device: Any, own: Mapping[str, bool | int | str] | None = None) -> Options:
    """What the compiler is told for a device, which need not be there.

    Args:
        device: one that the program is compiled for.
        own: a run's own options; they replace those of the table.
    """
    kind = "cpu" if device.platform == "cpu" else device.device_kind
    found = next((row for name, row in OPTIONS.items() if fnmatch.fnmatchcase(kind, name)), {})
    return {**found, **(own or {})}


def inference_options(device: Any) -> Options:
    """What the compiler is told of a program that only answers: the rest is of training alone.

    The rows of accelerators were estimated for steps of training, and cost time to compile.

    Args:
        device: one that the program is compiled for.
    """
    return options(device) if device.platform == "cpu" else {}


@contextlib.contextmanager
def heard(own: Mapping[str, bool | int | str]) -> Iterator[None]:
    """Within it a program is compiled, with a run's own options among others.

    Raises:
        ValueError: if the compiler does not know one of them, or its value.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition("\n")[0]
        wrong = [name for name in own if name in said and said.startswith("INVALID_ARGUMENT")]
        if not wrong:
            raise
        raise ValueError(
            f"compiler_options.{max(wrong, key=len)}: the compiler does not take it here: {said}; "
            "correct it, or leave it out on these devices"
        ) from error


def check(own: Mapping[str, bool | int | str]) -> None:
    """Refuses options that are denied.

    Raises:
        ValueError: all of them at once, each with the reason.
    """
    faults = [
        f"{name}: {why}"
        for name, value in own.items()
        if str(value).lower() not in ("false", "0")
        for pattern, why in DENIED.items()
        if fnmatch.fnmatchcase(name, pattern)
    ]
    if faults:
        raise ValueError("these options do harm; leave them out: " + "; ".join(faults))
