"""What the names and keys of all vision towers share."""

from astrollava_jax.models.vision import TowerConfig
from astrollava_jax.weights.family import Key
from astrollava_jax.weights.layout import Row

KEYS = {
    "image_size": Key("image_size", 224),
    "patch_size": Key("patch_size", 16),
    "embed_dim": Key("hidden_size", 768),
    "mlp_dim": Key("intermediate_size", 3072),
    "num_layers": Key("num_hidden_layers", 12),
    "num_heads": Key("num_attention_heads", 12),
}


FIXED = {"num_channels": (3, None)}


def sizes(config: TowerConfig) -> dict[str, int]:
    """The letters of the tables; `c` are colours, `s` what has a position."""
    return {
        "e": config.embed_dim,
        "f": config.mlp_dim,
        "n": config.num_heads,
        "h": config.embed_dim // config.num_heads,
        "c": 3,
        "p": config.patch_size,
        "q": config.patch_size,
        "s": config.num_patches + config.num_prefix,
    }


def embedding_rows(tower: str) -> tuple[Row, Row]:
    """Patches and places, given what stands before the tower's names."""
    name = f"{tower}embeddings."
    return (
        Row("vision/patch_embed/kernel", f"{name}patch_embedding.weight", "e c p q -> p q c e"),
        Row("vision/positions/embedding", f"{name}position_embedding.weight", "s e -> s e"),
    )


def block_rows(tower: str) -> tuple[Row, ...]:
    """The blocks, given what stands before the tower's names."""
    layer, attn = f"{tower}encoder.layers.{{}}.", "vision/layers/attn"
    return (
        *norm_rows("vision/layers/norm1", f"{layer}layer_norm1"),
        *_into_heads("q_proj", layer),
        *_into_heads("k_proj", layer),
        *_into_heads("v_proj", layer),
        Row(f"{attn}/o_proj/kernel", f"{layer}self_attn.out_proj.weight", "e (n h) -> n h e"),
        Row(f"{attn}/o_proj/bias", f"{layer}self_attn.out_proj.bias", "e -> e"),
        *norm_rows("vision/layers/norm2", f"{layer}layer_norm2"),
        *mlp_rows("vision/layers/mlp", f"{layer}mlp"),
    )


def norm_rows(address: str, name: str) -> tuple[Row, Row]:
    """A norm."""
    return (
        Row(f"{address}/scale", f"{name}.weight", "e -> e"),
        Row(f"{address}/bias", f"{name}.bias", "e -> e"),
    )


def mlp_rows(address: str, name: str) -> tuple[Row, ...]:
    """An MLP."""
    return (
        Row(f"{address}/up_proj/kernel", f"{name}.fc1.weight", "f e -> e f"),
        Row(f"{address}/up_proj/bias", f"{name}.fc1.bias", "f -> f"),
        Row(f"{address}/down_proj/kernel", f"{name}.fc2.weight", "e f -> f e"),
        Row(f"{address}/down_proj/bias", f"{name}.fc2.bias", "e -> e"),
    )


def _into_heads(part: str, layer: str) -> tuple[Row, Row]:
    address, name = f"vision/layers/attn/{part}", f"{layer}self_attn.{part}"
    return (
        Row(f"{address}/kernel", f"{name}.weight", "(n h) e -> e n h"),
        Row(f"{address}/bias", f"{name}.bias", "(n h) -> n h"),
    )
