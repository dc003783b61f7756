"""What the backward pass finds in memory, and what it computes again."""

from collections.abc import Callable
from typing import Any, Literal

import jax

ATTENTION = "attention"
"""What attention gathered, and what its kernel remembers of the softmax."""

PROJECTIONS = "projections"
"""The turned queries and keys, the values, and what is added to the layer's input of attention."""

MLP = "mlp"
"""What gate and up make of a layer's middle."""

LAYER_INPUT = "layer_input"
"""What a layer was given."""

Remat = Literal[
    "none", "dots_attention", "dots", "mlp", "projections", "attention", "full", "offload"
]
"""A row of `REMAT`, or `none`: everything is kept, nothing is computed twice."""

_policies = jax.checkpoint_policies


def _named(*names: str) -> Callable[..., Any]:
    """Keeps what has one of these names, and what attention gathered."""
    named = _policies.save_only_these_names(ATTENTION, *names)

    def policy(primitive: Any, *arrays: Any, **parameters: Any) -> Any:
        # cuDNN's kernel is one operation of JAX and names nothing: its results are known by its
        # own name.
        if primitive.name.startswith("dot_product_attention_fwd"):
            return True
        return named(primitive, *arrays, **parameters)

    return policy


REMAT: dict[Remat, Callable[..., Any]] = {
    # All that a matrix product or attention has made: nothing runs again but what is cheap, such as
    # norms. For chips and GPUs of much memory: 4 GiB more than `dots` in LLaVA-1.5-7B's stage 1
    # with 8 rows, by XLA for an H200.
    "dots_attention": _named(MLP, PROJECTIONS),
    # The results of matrix products, but not of those of attention: for models and rows that leave
    # much memory. LLaVA-1.5-7B's stage 2 does not fit so on 16 GB chips, at 2 rows a chip.
    "dots": _policies.dots_with_no_batch_dims_saveable,
    # Less of it. Each number that is kept spares about as many multiply-adds as the layer is wide,
    # so that these two and `attention` differ in how much memory they want. Of the products that
    # `full` runs again in LLaVA-1.5-7B, gate and up are 57%, for 5.4 widths a position;
    "mlp": _named(MLP),
    # queries, keys, values and attention's output are the rest, for 4 widths. Fewer where several
    # queries share a key.
    "projections": _named(PROJECTIONS),
    # Spares the second run of a flash kernel, for one array of the layer's width and a number per
    # query and head: worth more the longer the rows. XLA's attention gains nothing by it, for it
    # needs all its scores again.
    "attention": _named(),
    # A layer's input only. As compiled for v5e-16, stage 2 learns more tokens a second with 8 rows
    # a chip so than with the 2 that fit in the same memory when q, k, v and attention are kept.
    "full": _policies.nothing_saveable,
    # Not even that: it waits in the host's memory. For what does not fit otherwise, on TPUs and
    # GPUs; on a CPU the host's memory is the device's, and nothing is gained.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(LAYER_INPUT,),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""What is kept of a layer from the forward pass to the backward pass; all else is made again."""
