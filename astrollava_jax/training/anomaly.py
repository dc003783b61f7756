"""Bad numbers: what the compiled step refuses to learn from, and how often a run bears it.

A step is bad when its loss or a gradient is not finite, when either stands far above what it has
been of late, or when the weights or moments themselves hold what is no number. Nothing is then
learned from it: weights, moments and the schedule's clock stay what they were, bit for bit.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from astrollava_jax.config import config

GOOD, NOT_FINITE, SPIKE, BROKEN = range(4)
"""Verdicts upon a step. BROKEN: it is the weights or moments that are not finite, so that no later
step can be good."""


Sigma = Annotated[float, Field(gt=0)]


@config
class SpikeConfig:
    """How far a loss may stand above the mean of those before, in standard deviations.

    The norm of the gradients can be judged too, but sound runs have such spikes: the quickstart's
    stage 0 had two of ten deviations in its first thousand steps.
    """

    window: Annotated[int, Field(ge=2)] = 128
    """Good steps that are remembered; before there are as many, nothing is a spike."""
    sigma: Sigma = 10.0
    """For the loss."""
    grad_norm_sigma: Sigma | None = None
    """For the norm of all gradients; null = it is not judged."""


@config
class BadNumbers:
    """What is not learned from, besides losses and gradients that are not finite."""

    max_in_row: Annotated[int, Field(ge=1)] = 10
    """So many bad steps without a good one between: back to a checkpoint, and past their data."""
    spike: SpikeConfig | None = SpikeConfig()
    """null = a finite number is never bad."""


class History(NamedTuple):
    """The loss and the norm of the gradients of the newest good steps, in a ring."""

    count: Int[Array, ""]
    """Good steps so far: the next one is written at `count % window`."""
    loss: Float[Array, "window"]
    grad_norm: Float[Array, "window"]


def no_history(spike: SpikeConfig | None) -> History | None:
    """Of a run that begins; None for one that looks for no spikes."""
    if spike is None:
        return None
    return History(jnp.zeros((), jnp.int32), jnp.zeros(spike.window), jnp.zeros(spike.window))


def limits(history: History | None, spike: SpikeConfig | None) -> dict[str, Float[Array, ""]]:
    """The largest `loss` and `grad_norm` that are no spikes."""
    if history is None or spike is None:
        return {"loss": jnp.float32(jnp.inf), "grad_norm": jnp.float32(jnp.inf)}
    full = history.count >= spike.window

    def limit(values: Float[Array, "window"], sigma: float | None) -> Float[Array, ""]:
        if sigma is None:
            return jnp.float32(jnp.inf)
        return jnp.where(full, jnp.mean(values) + sigma * jnp.std(values), jnp.inf)

    return {
        "loss": limit(history.loss, spike.sigma),
        "grad_norm": limit(history.grad_norm, spike.grad_norm_sigma),
    }


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree of floats is finite, and so are their sums.

    A sum meets each of them as `isfinite` would, and is not finite if one of them is not; but on a
    CPU it takes a fifth of the time, and no array of truth values. No sum of weights or moments
    that ever came from a finite norm overflows.
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.isfinite(jnp.stack([jnp.sum(x) for x in floats])))


def verdict(
    loss: Float[Array, ""],
    grad_norm: Float[Array, ""],
    whole: Bool[Array, ""],
    limit: dict[str, Float[Array, ""]],
) -> Int[Array, ""]:
    """What a step is: the norm of all gradients is finite only if each of them is.

    Args:
        loss: of the step.
        grad_norm: before clipping.
        whole: whether the weights and moments that it began with are finite.
        limit: what `limits` gave.
    """
    spike = (loss > limit["loss"]) | (grad_norm > limit["grad_norm"])
    found = jnp.where(spike, SPIKE, GOOD)
    found = jnp.where(jnp.isfinite(loss) & jnp.isfinite(grad_norm), found, NOT_FINITE)
    return jnp.where(whole, found, BROKEN).astype(jnp.int32)


def remembered(
    history: History | None, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> History | None:
    """The history with one more good step."""
    if history is None:
        return None
    place = history.count % history.loss.shape[0]
    return History(
        history.count + 1,
        history.loss.at[place].set(loss),
        history.grad_norm.at[place].set(grad_norm),
    )


def only_if(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` after a good step; else `old`, to the last bit."""
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)


def why(metrics: dict[str, float | int]) -> str:
    """What was bad about a step, of what it measured, in words."""
    kind, loss, norm = int(metrics["bad"]), metrics["loss"], metrics["grad_norm"]
    if kind == BROKEN:
        return "weights or moments that are not finite"
    if kind == NOT_FINITE:
        return f"loss {loss}, norm of the gradients {norm}: not finite"
    spikes = [
        f"{words} {metrics[name]:.6g} above {metrics[f'limit/{name}']:.6g}"
        for name, words in (("loss", "loss"), ("grad_norm", "norm of the gradients"))
        if metrics[name] > metrics[f"limit/{name}"]
    ]
    return "spike: " + ", ".join(spikes)
