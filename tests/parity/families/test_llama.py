"""Llama 1 to 3.2, Vicuna, SmolLM2, Mistral and Qwen2 against transformers."""

import families
import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from astrollava_jax.models import llama
from astrollava_jax.models.rotary import LinearScaling, Llama3Scaling

LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
VICUNA_16K = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

CASES = {
    "llama 2": (LlamaConfig, {"num_key_value_heads": 4}, {"num_kv_heads": 4, "norm_eps": 1e-6}),
    "vicuna 16k": (
        LlamaConfig,
        {"rope_parameters": VICUNA_16K},
        {"rope_scaling": LinearScaling(factor=4.0), "norm_eps": 1e-6},
    ),
    "llama 3.2": (
        LlamaConfig,
        {"rope_parameters": LLAMA_3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {
            "rope_theta": 500000.0,
            "rope_scaling": Llama3Scaling(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=16
            ),
            "tie_embeddings": True,
        },
    ),
    "smollm2": (
        LlamaConfig,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 100000.0}},
        {"tie_embeddings": True, "rope_theta": 100000.0, "norm_eps": 1e-6},
    ),
    "mistral 0.1": (
        MistralConfig,
        {"sliding_window": 5, "head_dim": 16},
        {"window": 5, "head_dim": 16, "norm_eps": 1e-6},
    ),
    "mistral 0.3": (
        MistralConfig,
        {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6}, "rms_norm_eps": 1e-5},
        {"window": None, "rope_theta": 1e6},
    ),
    "qwen2": (
        Qwen2Config,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}},
        {"qkv_bias": True, "tie_embeddings": True, "rope_theta": 1e6, "norm_eps": 1e-6},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_decoder_equals_that_of_transformers(name, tmp_path):
    kind, theirs, ours = CASES[name]
    expected = families.on(llama.LlamaConfig(**families.OURS | ours))
    model = families.torch_model(kind(**families.DECODER | theirs))
    families.assert_equal_to_transformers(model, tmp_path, expected)
