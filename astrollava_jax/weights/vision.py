"""Names of the tensors of CLIP's vision tower."""

from astrollava_jax.models.vision import ClipConfig
from astrollava_jax.weights.layout import Row


def rows(tower: str) -> tuple[Row, ...]:
    """The table, given what stands before the tower's names."""
    layer = f"{tower}encoder.layers.{{}}."
    return (
        Row("vision/class_token/embedding", f"{tower}embeddings.class_embedding", "e -> 1 e"),
        Row(
            "vision/patch_embed/kernel",
            f"{tower}embeddings.patch_embedding.weight",
            "e c p q -> p q c e",
        ),
        Row(
            "vision/positions/embedding",
            f"{tower}embeddings.position_embedding.weight",
            "s e -> s e",
        ),
        *_norm("vision/pre_norm", f"{tower}pre_layrnorm"),  # CLIP's own spelling
        *_norm("vision/layers/norm1", f"{layer}layer_norm1"),
        *_into_heads("q_proj", layer),
        *_into_heads("k_proj", layer),
        *_into_heads("v_proj", layer),
        Row(
            "vision/layers/attn/o_proj/kernel",
            f"{layer}self_attn.out_proj.weight",
            "e (n h) -> n h e",
        ),
        Row("vision/layers/attn/o_proj/bias", f"{layer}self_attn.out_proj.bias", "e -> e"),
        *_norm("vision/layers/norm2", f"{layer}layer_norm2"),
        Row("vision/layers/mlp/up_proj/kernel", f"{layer}mlp.fc1.weight", "f e -> e f"),
        Row("vision/layers/mlp/up_proj/bias", f"{layer}mlp.fc1.bias", "f -> f"),
        Row("vision/layers/mlp/down_proj/kernel", f"{layer}mlp.fc2.weight", "e f -> f e"),
        Row("vision/layers/mlp/down_proj/bias", f"{layer}mlp.fc2.bias", "e -> e"),
        *_norm("vision/post_norm", f"{tower}post_layernorm"),
    )


def sizes(config: ClipConfig) -> dict[str, int]:
    """The letters of the table; `c` are colours, `s` the class token and the patches."""
    return {
        "e": config.embed_dim,
        "f": config.mlp_dim,
        "n": config.num_heads,
        "h": config.embed_dim // config.num_heads,
        "c": 3,
        "p": config.patch_size,
        "q": config.patch_size,
        "s": config.num_patches + 1,
    }


def _norm(address: str, name: str) -> tuple[Row, Row]:
    return (
        Row(f"{address}/scale", f"{name}.weight", "e -> e"),
        Row(f"{address}/bias", f"{name}.bias", "e -> e"),
    )


def _into_heads(part: str, layer: str) -> tuple[Row, Row]:
    address, name = f"vision/layers/attn/{part}", f"{layer}self_attn.{part}"
    return (
        Row(f"{address}/kernel", f"{name}.weight", "(n h) e -> e n h"),
        Row(f"{address}/bias", f"{name}.bias", "(n h) -> n h"),
    )
