"""Schedules, groups with their rates, and AdamW over parameters by address."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from astrollava_jax.config import config
from astrollava_jax.params import Params, assign
from astrollava_jax.training import anomaly

FROZEN = "frozen"
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")
"""Decay acts on addresses that end in these words: not on norms and biases, as in transformers."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Callable[[Int[Array, "..."]], Float[Array, "..."]]


@config
class Cosine:
    """Linear warm-up from 0, then half a cosine down to `final_fraction` of the peak."""

    type: Literal["cosine"] = "cosine"
    warmup_fraction: Fraction = 0.0
    """Part of all updates; the number of warm-up updates is rounded up."""
    final_fraction: Fraction = 0.0

    def build(self, peak: float, total: int) -> Rate:
        """The rate of each update, the first being update 0 with rate 0 if there is a warm-up."""
        low = self.final_fraction

        def shape(progress: Any) -> Any:
            return low + (1 - low) * 0.5 * (1 + jnp.cos(math.pi * progress))

        return _warmed_up(peak, total, self.warmup_fraction, shape)


@config
class Linear:
    """Linear warm-up from 0, then a line down to 0."""

    type: Literal["linear"] = "linear"
    warmup_fraction: Fraction = 0.0
    """Part of all updates; the number of warm-up updates is rounded up."""

    def build(self, peak: float, total: int) -> Rate:
        """The rate of each update."""
        return _warmed_up(peak, total, self.warmup_fraction, lambda progress: 1 - progress)


@config
class Constant:
    """Linear warm-up from 0, then the peak for ever."""

    type: Literal["constant"] = "constant"
    warmup_fraction: Fraction = 0.0
    """Part of all updates; the number of warm-up updates is rounded up."""

    def build(self, peak: float, total: int) -> Rate:
        """The rate of each update."""
        return _warmed_up(peak, total, self.warmup_fraction, jnp.ones_like)


Schedule = Annotated[Cosine | Linear | Constant, Field(discriminator="type")]


@config
class Group:
    """Parameters that train with one rate."""

    name: str
    params: str
    """Regular expression over whole addresses."""
    peak_lr: Annotated[float, Field(ge=0)]
    weight_decay: float | None = None
    """Per update and unit of rate; unset = the optimizer's."""


@config
class OptimizerConfig:
    """AdamW, and the fate of every parameter: one group, or frozen."""

    groups: tuple[Group, ...]
    frozen: tuple[str, ...] = ()
    """Patterns of the parameters that do not train: no gradient, no moments, no decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Largest norm of all gradients together; null = no clipping."""
    schedule: Schedule

    def __post_init__(self):
        names = [group.name for group in self.groups]
        if not names:
            raise ValueError("groups: at least one group must train")
        if len(set(names)) < len(names) or FROZEN in names:
            raise ValueError(f"groups: names must differ and none is {FROZEN!r}; found {names}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm is {self.clip_norm}, expected more than 0; null clips nothing"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or not self.eps > 0:
            raise ValueError(
                f"expected betas in [0, 1) and eps above 0, found {self.betas}, {self.eps}"
            )

    def fates(self, addresses: Any) -> dict[str, str]:
        """The name of the group that trains each address, or `frozen`.

        Raises:
            ValueError: if an address has no fate or two, or a row matches nothing.
        """
        rows = [(group.params, group.name) for group in self.groups]
        rows += [(pattern, FROZEN) for pattern in self.frozen]
        return assign(rows, addresses, "a fate, in optimizer.groups or optimizer.frozen")


class AdamState(NamedTuple):
    """The moments of everything that trains; `count` updates were made."""

    count: Int[Array, ""]
    mu: Params
    nu: Params


class AdamW:
    """AdamW with a rate and a decay per address, clipped over all groups together.

    Source: arXiv 1711.05101, as `torch.optim.AdamW` computes it.
    """

    def __init__(self, config: OptimizerConfig, fates: dict[str, str], total_updates: int):
        groups = {group.name: group for group in config.groups}
        self.config = config
        self.rates = {
            name: config.schedule.build(group.peak_lr, total_updates)
            for name, group in groups.items()
        }
        self.group_of = {address: name for address, name in fates.items() if name != FROZEN}
        self.decay_of = {
            address: self._decay(groups[name], address) for address, name in self.group_of.items()
        }

    def init(self, trainable: Params) -> AdamState:
        """Zero moments in float32."""
        zeros = {a: jnp.zeros(x.shape, jnp.float32) for a, x in trainable.items()}
        return AdamState(jnp.zeros((), jnp.int32), zeros, {a: x + 0 for a, x in zeros.items()})

    def update(
        self,
        gradients: Params,
        norm: Float[Array, ""],
        state: AdamState,
        trainable: Params,
        good: Bool[Array, ""],
    ) -> tuple[Params, AdamState, dict[str, Array]]:
        """The parameters and moments after one update, and each group's `lr`.

        Args:
            gradients: of everything that trains.
            norm: of all of them together.
            state: the moments so far.
            trainable: the parameters.
            good: whether to make the update; else all stay what they were, to the last bit.
        """
        if self.config.clip_norm is not None:
            # torch adds 1e-6 to the norm; the same here, so that curves can be compared.
            factor = jnp.minimum(1.0, self.config.clip_norm / (norm + 1e-6))
            gradients = {a: g * factor for a, g in gradients.items()}
        # Moments are chosen before they are used: the parameters would else need the old and the
        # new ones at a time, and XLA would copy what it could overwrite.
        first, second = self.config.betas
        mu = optax.tree.update_moment(gradients, state.mu, first, 1)
        nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, second, 2)
        mu, nu = anomaly.only_if(good, (mu, nu), (state.mu, state.nu))
        count = state.count + 1
        means = optax.tree.bias_correction(mu, first, count)
        squares = optax.tree.bias_correction(nu, second, count)
        rates = {name: rate(state.count) for name, rate in self.rates.items()}
        updated = {}
        for address, x in trainable.items():
            direction = means[address] / (jnp.sqrt(squares[address]) + self.config.eps)
            if self.decay_of[address]:
                # By a decay of 0 XLA for GPUs multiplies with an array of zeros, made and kept: 16
                # GiB of LLaVA-1.5-7B's stage 2.
                direction += self.decay_of[address] * x
            updated[address] = x - rates[self.group_of[address]] * direction
        updated, count = anomaly.only_if(good, (updated, count), (trainable, state.count))
        metrics = {f"lr/{name}": rate for name, rate in rates.items()}
        return updated, AdamState(count, mu, nu), metrics

    def _decay(self, group: Group, address: str) -> float:
        wanted = self.config.weight_decay if group.weight_decay is None else group.weight_decay
        return wanted if address.rsplit("/", 1)[-1] in DECAYED else 0.0


def _warmed_up(peak: float, total: int, fraction: float, shape: Callable[[Any], Any]) -> Rate:
    """A rate that rises for `ceil(fraction x total)` updates and then follows `shape`."""
    warmup = math.ceil(fraction * total)

    def rate(count: Int[Array, "..."]) -> Float[Array, "..."]:
        count = jnp.asarray(count, jnp.float32)
        rising = count / max(1, warmup)
        falling = shape(jnp.clip((count - warmup) / max(1, total - warmup), 0.0, 1.0))
        return peak * jnp.where(count < warmup, rising, falling)

    return rate
