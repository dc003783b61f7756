"""The three forms in which AstroLLaVA stands on the hub, and a lone projector of LLaVA's stage 1.

The directories have the names, shapes and config keys of the real ones (7B); their numbers are
mostly zeros, which take no room on a disk.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
import torch
from published import HF_PROJECTOR, PREFIX, llava_1_5, published_names, write_shards, write_sparse

from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_any
from astrollava_jax.weights.adapted import Adapted
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.llava import with_vocabulary
from astrollava_jax.weights.recognise import recognise

RANK, ALPHA = 128, 256
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOWER = "model.vision_tower.vision_tower.vision_model."

ORIGINAL_CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": 2, "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False,
    "hidden_act": "silu", "hidden_size": 4096, "image_aspect_ratio": "pad",
    "initializer_range": 0.02, "intermediate_size": 11008, "max_length": 4096,
    "max_position_embeddings": 4096, "mm_hidden_size": 1024, "mm_patch_merge_type": "flat",
    "mm_projector_lr": 2e-5, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None,
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava_llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right", "torch_dtype": "bfloat16", "transformers_version": "4.37.2",
    "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False, "use_cache": True, "use_mm_proj": True, "vocab_size": 32000,
}  # fmt: skip


def adapter_config(base: str) -> dict:
    """As PEFT 0.5.0 writes it."""
    return {
        "auto_mapping": None, "base_model_name_or_path": base, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layers_pattern": None, "layers_to_transform": None, "lora_alpha": ALPHA,
        "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "r": RANK,
        "revision": None, "target_modules": MODULES, "task_type": "CAUSAL_LM",
    }  # fmt: skip


def adapter_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for layer in range(32):
        for module in MODULES:
            room = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{room}.{module}"
            inputs = 11008 if module == "down_proj" else 4096
            outputs = 11008 if module in ("gate_proj", "up_proj") else 4096
            shapes[f"{name}.lora_A.weight"] = (RANK, inputs)
            shapes[f"{name}.lora_B.weight"] = (outputs, RANK)
    return shapes


def write_projector(path: Path, start: str) -> None:
    """The projector as a pickle of torch: one number in every place, which takes no room."""
    shapes = {"0.weight": (4096, 1024), "0.bias": (4096,),
              "2.weight": (4096, 4096), "2.bias": (4096,)}  # fmt: skip
    one = torch.tensor(0.5, dtype=torch.bfloat16)
    torch.save({f"{start}mm_projector.{n}": one.expand(s) for n, s in shapes.items()}, path)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> tuple[Path, Path]:
    """llava-hf/llava-1.5-7b-hf, and a whole original LLaVA, in zeros."""
    folder = tmp_path_factory.mktemp("bases")
    hf, original = folder / "seven-b", folder / "eight"
    hf.mkdir()
    names = published_names(
        "7b", 32064, "language_model.model.", "language_model.lm_head", PREFIX, HF_PROJECTOR
    )
    write_shards(hf, names, "F16", 3)
    tiny.write_json(hf, "config.json", {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
        "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "torch_dtype": "float16", "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    })  # fmt: skip
    write_original(original)
    return hf, original


def write_original(folder: Path) -> None:
    """AstroLLaVA_v3's form: merged, the tower embedded, a slow tokenizer alone."""
    folder.mkdir()
    projector = ["model.mm_projector.0", "model.mm_projector.2"]
    names = published_names("7b", 32000, "model.", "lm_head", TOWER, projector)
    write_shards(folder, names, "BF16", 3)
    tiny.write_json(folder, "config.json", ORIGINAL_CONFIG)
    tiny.write_json(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    (folder / "trainer_state.json").write_text("{}")


def test_the_whole_model_with_its_tower_embedded(bases):
    _, folder = bases
    assert recognise(folder).name == "llava"
    source = open_model(folder)
    assert source.config == with_vocabulary(llava_1_5("7b", 32064), 32000)
    assert source.image_mode == "pad"
    assert source.read("vision/layers/mlp/up_proj/kernel", np.s_[23:24,]).shape == (1, 1024, 4096)


def test_its_tokenizer_model_makes_it_answer(bases, tmp_path):
    where = os.environ.get("ASTROLLAVA_TEST_TOKENIZERS")
    if where is None:
        pytest.skip("ASTROLLAVA_TEST_TOKENIZERS names no folder of tokenizers")
    for path in bases[1].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer.model").symlink_to(Path(where) / "llama2.model")
    tiny.write_json(tmp_path, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
        "legacy": False, "model_max_length": 2048, "pad_token": "<unk>", "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
        "use_default_system_prompt": False,
    })  # fmt: skip
    source = open_model(tmp_path)
    assert (source.words, source.config.llm.vocab_size) == (32000, 32064)
    assert source.tokenizer.image_id == 32000
    assert source.template == "vicuna_v1"


def test_the_first_adapter_names_a_model_of_the_hub(bases, tmp_path):
    """v1: names of the original upon a base of transformers, twice the adapter, a tokenizer."""
    tiny.write_json(tmp_path, "adapter_config.json", adapter_config("llava-hf/llava-1.5-7b-hf"))
    config = {**ORIGINAL_CONFIG, "pad_token_id": 32001, "vocab_size": 32064}
    tiny.write_json(tmp_path, "config.json", config)
    write_sparse(tmp_path / "adapter_model.safetensors", adapter_shapes(), "F32")
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    torch.save({n: half.expand(s) for n, s in adapter_shapes().items()},
               tmp_path / "adapter_model.bin")  # fmt: skip
    write_projector(tmp_path / "non_lora_trainables.bin", "base_model.model.model.")
    with pytest.raises(FileNotFoundError, match=r"'llava-hf/llava-1.5-7b-hf', .* give --base DIR"):
        open_model(tmp_path)
    source = open_model(tmp_path, base=bases[0])
    assert isinstance(source, Adapted)
    assert source.config == llava_1_5("7b", 32064)
    assert source.image_mode == "pad"  # the base's processor crops; the adapter was trained on pads
    assert (source.lora.rank, source.lora.alpha, len(source.lora.modules)) == (128, 256.0, 7)
    assert np.all(source.read("projector/layers_0/bias") == np.float16(0.5))
    kernel = source.read("llm/layers/mlp/down_proj/kernel", np.s_[31:32, 0:3, 0:5])
    assert kernel.dtype == np.float16 and not kernel.any()  # safetensors hold, and hold zeros


def test_the_second_adapter_names_a_folder_that_is_gone(bases, tmp_path):
    """v2: no tokenizer, and a name without the word lora."""
    tiny.write_json(tmp_path, "adapter_config.json", adapter_config("./checkpoints/llava-v1.5-7b"))
    tiny.write_json(tmp_path, "config.json", ORIGINAL_CONFIG)
    tenth = torch.tensor(0.125, dtype=torch.bfloat16)
    torch.save({n: tenth.expand(s) for n, s in adapter_shapes().items()},
               tmp_path / "adapter_model.bin")  # fmt: skip
    write_projector(tmp_path / "non_lora_trainables.bin", "base_model.model.model.")
    opened = open_any(str(tmp_path), bases=[str(bases[1])])
    kernel = opened.source.read("llm/layers/attn/o_proj/kernel", np.s_[31:32, 0:1])
    assert kernel.shape == (1, 1, 128, 4096)
    assert np.all(kernel == 2 * RANK / 64)  # alpha / rank x 128 sums of 1/8 x 1/8
    assert np.all(opened.changed["projector/layers_1/kernel"] == 0.5)


def test_a_lone_projector_stands_between_two_parts(tmp_path):
    model = tiny_llava.torch_model()
    written = tiny.write_original(tmp_path / "whole", model, dtype=torch.float32)
    tiny.write_parts(tmp_path / "tower", tmp_path / "decoder", model)
    folder = tmp_path / "stage1"
    folder.mkdir()
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    tiny.write_json(folder, "config.json", config | {"_name_or_path": "lmsys/vicuna"})
    torch.save({n: t for n, t in written.items() if "mm_projector" in n},
               folder / "mm_projector.bin")  # fmt: skip
    assert recognise(folder).name == "projector"
    with pytest.raises(ValueError, match="between some/tower and lmsys/vicuna: give both"):
        open_model(folder)
    parts = {"vision": tmp_path / "tower", "llm": tmp_path / "decoder"}
    convert(folder, tmp_path / "out", "llava", **parts)
    tiny.assert_same(tiny.read_all(tmp_path / "out"), written)
    assert open_model(tmp_path / "out").image_mode == "pad"
