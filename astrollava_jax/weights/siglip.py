"""Names and keys of SigLIP's vision tower."""

from astrollava_jax.models.siglip import SiglipConfig
from astrollava_jax.weights.family import Dialect, Family, Key
from astrollava_jax.weights.layout import Row
from astrollava_jax.weights.vision import (
    FIXED,
    KEYS,
    block_rows,
    embedding_rows,
    mlp_rows,
    norm_rows,
    sizes,
)


def rows(tower: str, config: SiglipConfig) -> tuple[Row, ...]:
    """The table, given what stands before the tower's names."""
    return (
        Row("vision/patch_embed/bias", f"{tower}embeddings.patch_embedding.bias", "e -> e"),
        *embedding_rows(tower),
        *block_rows(tower),
        *norm_rows("vision/post_norm", f"{tower}post_layernorm"),
        *(_pooling(f"{tower}head.") if config.pooling else ()),
    )


def _pooling(head: str) -> tuple[Row, ...]:
    """The head, whose queries, keys and values stand in one tensor, as torch's attention has it."""
    address, name = "vision/pooling/attn", f"{head}attention.in_proj_"
    ranges = {"q_proj": "[0:n*h]", "k_proj": "[n*h:2*n*h]", "v_proj": "[2*n*h:3*n*h]"}
    inner = (
        row
        for part, rows in ranges.items()
        for row in (
            Row(f"{address}/{part}/kernel", f"{name}weight{rows}", "(n h) e -> e n h"),
            Row(f"{address}/{part}/bias", f"{name}bias{rows}", "(n h) -> n h"),
        )
    )
    return (
        Row("vision/pooling/probe/embedding", f"{head}probe", "1 1 e -> 1 e"),
        *inner,
        Row(f"{address}/o_proj/kernel", f"{head}attention.out_proj.weight", "e (n h) -> n h e"),
        Row(f"{address}/o_proj/bias", f"{head}attention.out_proj.bias", "e -> e"),
        *norm_rows("vision/pooling/norm", f"{head}layernorm"),
        *mlp_rows("vision/pooling/mlp", f"{head}mlp"),
    )


FAMILY = Family(
    config=SiglipConfig,
    rows=rows,
    sizes=sizes,
    dialects=(
        Dialect(
            "siglip_vision_model",
            "SiglipVisionModel",
            keys=KEYS
            | {
                "norm_eps": Key("layer_norm_eps", 1e-6),
                "activation": Key("hidden_act", "gelu_pytorch_tanh"),
                "pooling": Key("vision_use_head", True),
            },
            fixed=FIXED,
        ),
    ),
)
