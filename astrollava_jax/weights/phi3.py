"""Names and keys of Phi-3: Llama's, with q, k and v in one tensor, gate and up in another."""

from astrollava_jax.models.phi3 import Phi3Config
from astrollava_jax.weights.family import Dialect, Family, Key
from astrollava_jax.weights.layout import Row
from astrollava_jax.weights.llama import KEYS, SILU, ends, sizes
from astrollava_jax.weights.rotary import read_rope, rope_faults, write_rope


def rows(model: str, head: str, config: Phi3Config) -> tuple[Row, ...]:
    """The table, given what stands before the decoder's names and before the head's."""
    layer = f"{model}layers.{{}}."
    qkv, gate_up = f"{layer}self_attn.qkv_proj.weight", f"{layer}mlp.gate_up_proj.weight"
    attn, mlp = "llm/layers/attn", "llm/layers/mlp"
    return (
        *ends(model, head, config),
        Row("llm/layers/norm1/scale", f"{layer}input_layernorm.weight", "d -> d"),
        Row(f"{attn}/q_proj/kernel", f"{qkv}[0:n*h]", "(n h) d -> d n h"),
        Row(f"{attn}/k_proj/kernel", f"{qkv}[n*h:n*h+k*h]", "(k h) d -> d k h"),
        Row(f"{attn}/v_proj/kernel", f"{qkv}[n*h+k*h:n*h+2*k*h]", "(k h) d -> d k h"),
        Row(f"{attn}/o_proj/kernel", f"{layer}self_attn.o_proj.weight", "d (n h) -> n h d"),
        Row("llm/layers/norm2/scale", f"{layer}post_attention_layernorm.weight", "d -> d"),
        Row(f"{mlp}/gate_proj/kernel", f"{gate_up}[0:f]", "f d -> d f"),
        Row(f"{mlp}/up_proj/kernel", f"{gate_up}[f:2*f]", "f d -> d f"),
        Row(f"{mlp}/down_proj/kernel", f"{layer}mlp.down_proj.weight", "d f -> f d"),
    )


FAMILY = Family(
    config=Phi3Config,
    rows=rows,
    sizes=sizes,
    read_extra=read_rope,
    write_extra=write_rope,
    extra_faults=rope_faults,
    dialects=(
        Dialect(
            "phi3",
            "Phi3ForCausalLM",
            keys=KEYS
            | {
                "vocab_size": Key("vocab_size", 32064),
                "embed_dim": Key("hidden_size", 3072),
                "mlp_dim": Key("intermediate_size", 8192),
                "norm_eps": Key("rms_norm_eps", 1e-5),
                "window": Key("sliding_window", None),
            },
            constants={"qkv_bias": False},
            fixed=SILU,
        ),
    ),
)
