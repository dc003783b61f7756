"""The Phi-3 decoder: Llama's formulas; only its files differ."""

from typing import Literal

from astrollava_jax.config import config
from astrollava_jax.models.llama import LlamaConfig


@config
class Phi3Config(LlamaConfig):
    """The shape of a Phi-3 with short positions (mini and medium, 4k)."""

    type: Literal["phi3"] = "phi3"  # pyright: ignore[reportIncompatibleVariableOverride]
