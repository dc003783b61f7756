"""Names and keys of Llama (1, 2, 3, Vicuna, SmolLM2), Mistral and Qwen2."""

from typing import Any

from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.weights.family import Dialect, Family, Key
from astrollava_jax.weights.layout import Row
from astrollava_jax.weights.rotary import read_rope, rope_faults, write_rope


def rows(model: str, head: str, config: LlamaConfig) -> tuple[Row, ...]:
    """The table, given what stands before the decoder's names and before the head's."""
    layer, attn, mlp = f"{model}layers.{{}}.", "self_attn", "mlp"
    shifts = (
        Row("llm/layers/attn/q_proj/bias", f"{layer}{attn}.q_proj.bias", "(n h) -> n h"),
        Row("llm/layers/attn/k_proj/bias", f"{layer}{attn}.k_proj.bias", "(k h) -> k h"),
        Row("llm/layers/attn/v_proj/bias", f"{layer}{attn}.v_proj.bias", "(k h) -> k h"),
    )
    return (
        *ends(model, head, config),
        Row("llm/layers/norm1/scale", f"{layer}input_layernorm.weight", "d -> d"),
        Row("llm/layers/attn/q_proj/kernel", f"{layer}{attn}.q_proj.weight", "(n h) d -> d n h"),
        Row("llm/layers/attn/k_proj/kernel", f"{layer}{attn}.k_proj.weight", "(k h) d -> d k h"),
        Row("llm/layers/attn/v_proj/kernel", f"{layer}{attn}.v_proj.weight", "(k h) d -> d k h"),
        *(shifts if config.qkv_bias else ()),
        Row("llm/layers/attn/o_proj/kernel", f"{layer}{attn}.o_proj.weight", "d (n h) -> n h d"),
        Row("llm/layers/norm2/scale", f"{layer}post_attention_layernorm.weight", "d -> d"),
        Row("llm/layers/mlp/gate_proj/kernel", f"{layer}{mlp}.gate_proj.weight", "f d -> d f"),
        Row("llm/layers/mlp/up_proj/kernel", f"{layer}{mlp}.up_proj.weight", "f d -> d f"),
        Row("llm/layers/mlp/down_proj/kernel", f"{layer}{mlp}.down_proj.weight", "d f -> f d"),
    )


def ends(model: str, head: str, config: Any) -> tuple[Row, ...]:
    """What stands before and behind the layers; a tied head has no row: it is the embedding."""
    table = (
        Row("llm/embed/embedding", f"{model}embed_tokens.weight", "v d -> v d"),
        Row("llm/norm/scale", f"{model}norm.weight", "d -> d"),
    )
    if config.tie_embeddings:
        return table
    return (*table, Row("llm/lm_head/kernel", f"{head}weight", "v d -> d v"))


def sizes(config: Any) -> dict[str, int]:
    """The letters of the table."""
    return {
        "v": config.vocab_size,
        "d": config.embed_dim,
        "f": config.mlp_dim,
        "n": config.num_heads,
        "k": config.num_kv_heads,
        "h": config.head_dim,
    }


KEYS = {
    "vocab_size": Key("vocab_size", 32000),
    "embed_dim": Key("hidden_size", 4096),
    "mlp_dim": Key("intermediate_size", 11008),
    "num_layers": Key("num_hidden_layers", 32),
    "num_heads": Key("num_attention_heads", 32),
    "num_kv_heads": Key("num_key_value_heads", lambda above: above["num_heads"]),
    "head_dim": Key("head_dim", lambda above: above["embed_dim"] // above["num_heads"]),
    "norm_eps": Key("rms_norm_eps", 1e-6),
    "tie_embeddings": Key("tie_word_embeddings", False),
}
SILU = {"hidden_act": ("silu", None)}

FAMILY = Family(
    config=LlamaConfig,
    rows=rows,
    sizes=sizes,
    read_extra=read_rope,
    write_extra=write_rope,
    extra_faults=rope_faults,
    dialects=(
        Dialect(
            "llama",
            "LlamaForCausalLM",
            keys=KEYS,
            constants={"qkv_bias": False, "window": None},
            fixed=SILU | {"attention_bias": (False, None), "mlp_bias": (False, None)},
            original=("llava_llama", "LlavaLlamaForCausalLM"),
        ),
        Dialect(
            "mistral",
            "MistralForCausalLM",
            keys=KEYS
            | {
                "mlp_dim": Key("intermediate_size", 14336),
                "num_kv_heads": Key("num_key_value_heads", 8),
                "window": Key("sliding_window", 4096, null=True),
            },
            constants={"qkv_bias": False},
            fixed=SILU | {"layer_types": (None,)},
            original=("llava_mistral", "LlavaMistralForCausalLM"),
        ),
        Dialect(
            "qwen2",
            "Qwen2ForCausalLM",
            keys=KEYS
            | {
                "vocab_size": Key("vocab_size", 151936),
                "mlp_dim": Key("intermediate_size", 22016),
            },
            constants={"qkv_bias": True, "window": None},
            fixed=SILU | {"use_sliding_window": (False, None)},
            original=("llava_qwen", "LlavaQwenForCausalLM"),
        ),
    ),
)
