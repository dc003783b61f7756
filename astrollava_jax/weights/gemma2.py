"""Names and keys of Gemma-2, whose blocks go in pairs: near ones are even, far ones odd."""

from astrollava_jax.models.gemma2 import Gemma2Config
from astrollava_jax.weights.family import Dialect, Family, Key, Tree
from astrollava_jax.weights.layout import Row
from astrollava_jax.weights.llama import KEYS, ends, sizes
from astrollava_jax.weights.rotary import read_rope, rope_faults, write_rope

_BLOCKS = {"near": "{2*}", "far": "{2*+1}"}
_ROWS = (
    ("norm1/scale", "input_layernorm.weight", "d -> d"),
    ("attn/q_proj/kernel", "self_attn.q_proj.weight", "(n h) d -> d n h"),
    ("attn/k_proj/kernel", "self_attn.k_proj.weight", "(k h) d -> d k h"),
    ("attn/v_proj/kernel", "self_attn.v_proj.weight", "(k h) d -> d k h"),
    ("attn/o_proj/kernel", "self_attn.o_proj.weight", "d (n h) -> n h d"),
    ("norm1_after/scale", "post_attention_layernorm.weight", "d -> d"),
    ("norm2/scale", "pre_feedforward_layernorm.weight", "d -> d"),
    ("mlp/gate_proj/kernel", "mlp.gate_proj.weight", "f d -> d f"),
    ("mlp/up_proj/kernel", "mlp.up_proj.weight", "f d -> d f"),
    ("mlp/down_proj/kernel", "mlp.down_proj.weight", "d f -> f d"),
    ("norm2_after/scale", "post_feedforward_layernorm.weight", "d -> d"),
)


def rows(model: str, head: str, config: Gemma2Config) -> tuple[Row, ...]:
    """The table, given what stands before the decoder's names and before the head's."""
    return ends(model, head, config) + tuple(
        Row(f"llm/layers/{block}/{ours}", f"{model}layers.{number}.{theirs}", sentence)
        for block, number in _BLOCKS.items()
        for ours, theirs, sentence in _ROWS
    )


def layer_faults(tree: Tree) -> list[str]:
    """Where windows and positions are not as in Gemma-2."""
    kinds, count = tree.get("layer_types"), tree.get("num_hidden_layers", 26)
    pattern = (["sliding_attention", "full_attention"] * count)[:count]
    faults = rope_faults(tree)
    if kinds not in (None, pattern):
        faults.append(f"layer_types: expected sliding and full in turn, found {kinds}")
    if count % 2:
        faults.append(f"num_hidden_layers: expected an even number, found {count}")
    return faults


FAMILY = Family(
    config=Gemma2Config,
    rows=rows,
    sizes=sizes,
    read_extra=read_rope,
    write_extra=write_rope,
    extra_faults=layer_faults,
    dialects=(
        Dialect(
            "gemma2",
            "Gemma2ForCausalLM",
            keys=KEYS
            | {
                "vocab_size": Key("vocab_size", 256000),
                "embed_dim": Key("hidden_size", 2304),
                "mlp_dim": Key("intermediate_size", 9216),
                "num_layers": Key("num_hidden_layers", 26),
                "num_heads": Key("num_attention_heads", 8),
                "num_kv_heads": Key("num_key_value_heads", 4),
                "head_dim": Key("head_dim", 256),
                "tie_embeddings": Key("tie_word_embeddings", True),
                "window": Key("sliding_window", 4096, null=True),
                "query_scale": Key("query_pre_attn_scalar", 256),
                "attention_softcap": Key("attn_logit_softcapping", 50.0, null=True),
                "logits_softcap": Key("final_logit_softcapping", 30.0, null=True),
            },
            fixed={
                "hidden_activation": ("gelu_pytorch_tanh", None),
                "attention_bias": (False, None),
                "use_bidirectional_attention": (None, False),
            },
        ),
    ),
)
