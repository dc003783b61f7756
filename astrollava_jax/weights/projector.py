"""Names of the projector's tensors."""

from collections.abc import Sequence

from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import IdentityConfig, LinearConfig
from astrollava_jax.weights.layout import Row


def rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The table, given what stands before the names of each linear map."""
    return tuple(
        row
        for index, name in enumerate(names)
        for row in (
            Row(
                f"projector/layers_{index}/kernel",
                f"{name}weight",
                "d o -> o d" if index else "d e -> e d",
            ),
            Row(f"projector/layers_{index}/bias", f"{name}bias", "d -> d"),
        )
    )


def depth(config: LlavaConfig) -> int:
    """The number of linear maps."""
    if isinstance(config.projector, IdentityConfig):
        return 0
    return 1 if isinstance(config.projector, LinearConfig) else config.projector.depth


def sizes(config: LlavaConfig) -> dict[str, int]:
    """The letters of the table; `o` is the width between two maps."""
    return {"e": config.vision.embed_dim, "d": config.llm.embed_dim, "o": config.llm.embed_dim}
