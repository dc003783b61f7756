"""Names of Llama's tensors (Llama 1 and 2, Vicuna, SmolLM2)."""

from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.weights.layout import Row


def rows(model: str, head: str, *, tied: bool) -> tuple[Row, ...]:
    """The table, given what stands before the decoder's names and before the head's.

    A tied head has no row: it is the embedding.
    """
    layer, attn, mlp = f"{model}layers.{{}}.", "self_attn", "mlp"
    table = (
        Row("llm/embed/embedding", f"{model}embed_tokens.weight", "v d -> v d"),
        Row("llm/layers/norm1/scale", f"{layer}input_layernorm.weight", "d -> d"),
        Row("llm/layers/attn/q_proj/kernel", f"{layer}{attn}.q_proj.weight", "(n h) d -> d n h"),
        Row("llm/layers/attn/k_proj/kernel", f"{layer}{attn}.k_proj.weight", "(k h) d -> d k h"),
        Row("llm/layers/attn/v_proj/kernel", f"{layer}{attn}.v_proj.weight", "(k h) d -> d k h"),
        Row("llm/layers/attn/o_proj/kernel", f"{layer}{attn}.o_proj.weight", "d (n h) -> n h d"),
        Row("llm/layers/norm2/scale", f"{layer}post_attention_layernorm.weight", "d -> d"),
        Row("llm/layers/mlp/gate_proj/kernel", f"{layer}{mlp}.gate_proj.weight", "f d -> d f"),
        Row("llm/layers/mlp/up_proj/kernel", f"{layer}{mlp}.up_proj.weight", "f d -> d f"),
        Row("llm/layers/mlp/down_proj/kernel", f"{layer}{mlp}.down_proj.weight", "d f -> f d"),
        Row("llm/norm/scale", f"{model}norm.weight", "d -> d"),
    )
    return table if tied else (*table, Row("llm/lm_head/kernel", f"{head}weight", "v d -> d v"))


def sizes(config: LlamaConfig) -> dict[str, int]:
    """The letters of the table."""
    return {
        "v": config.vocab_size,
        "d": config.embed_dim,
        "f": config.mlp_dim,
        "n": config.num_heads,
        "k": config.num_kv_heads,
        "h": config.head_dim,
    }
