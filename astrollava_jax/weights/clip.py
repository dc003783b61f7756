"""Names and keys of CLIP's vision tower."""

from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.weights.family import Dialect, Family, Key
from astrollava_jax.weights.layout import Row
from astrollava_jax.weights.vision import FIXED, KEYS, block_rows, embedding_rows, norm_rows, sizes


def rows(tower: str, config: ClipConfig) -> tuple[Row, ...]:
    """The table, given what stands before the tower's names."""
    return (
        Row("vision/class_token/embedding", f"{tower}embeddings.class_embedding", "e -> 1 e"),
        *embedding_rows(tower),
        *norm_rows("vision/pre_norm", f"{tower}pre_layrnorm"),  # CLIP's own spelling
        *block_rows(tower),
        *norm_rows("vision/post_norm", f"{tower}post_layernorm"),
    )


FAMILY = Family(
    config=ClipConfig,
    rows=rows,
    sizes=sizes,
    dialects=(
        Dialect(
            "clip_vision_model",
            "CLIPVisionModel",
            keys=KEYS
            | {
                "patch_size": Key("patch_size", 32),
                "norm_eps": Key("layer_norm_eps", 1e-5),
                "activation": Key("hidden_act", "quick_gelu"),
            },
            fixed=FIXED,
        ),
    ),
)
