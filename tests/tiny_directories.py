"""Tiny models in the layouts of other systems, written with their own tools and named by hand."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

WORDS, IMAGE_ID, PAD_ID, ROWS = 61, 61, 62, 64
"""The tokenizer's own words; what is added to them; the rows of the table of tiny_llava."""

TO_4X = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.image_newline", "image_newline"),
)
TO_4_52 = (("model.vision_tower.", "model.vision_tower.vision_model."),)
TO_ORIGINAL = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
)

ORIGINAL_TYPES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
    "qwen2": ("LlavaQwenForCausalLM", "llava_qwen"),
}
"""What haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT call their models, by decoder."""

OWN_KEYS = {"mistral": ("sliding_window",), "qwen2": ("use_sliding_window", "max_window_layers")}
"""What a decoder's config has besides those of a Llama."""

Model = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
Tensors = dict[str, torch.Tensor]


def renamed(tensors: Tensors, prefixes: tuple[tuple[str, str], ...]) -> Tensors:
    """The tensors of a model of transformers 5 under other names."""
    found = {}
    for name, value in tensors.items():
        for old, new in prefixes:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        found[name] = value.contiguous()
    return found


def tensors_of(model: Model, dtype: torch.dtype) -> Tensors:
    """A model's numbers under the names of transformers 5, a tied head once."""
    tied = model.config.text_config.tie_word_embeddings
    return {
        name: value.detach().to(dtype)
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content, indent=2))


def text_config(model: Model, rows: int) -> dict[str, Any]:
    """The decoder's config as transformers 4 writes it."""
    text = model.config.text_config
    rope: Any = text.rope_parameters
    return {
        "model_type": text.model_type,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "max_position_embeddings": 256,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vocab_size": rows,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **{key: getattr(text, key) for key in OWN_KEYS.get(text.model_type, ())},
    }


def vision_config(model: Model) -> dict[str, Any]:
    """The tower's config as transformers 4 writes it."""
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "image_size", "patch_size", "projection_dim",
    )  # fmt: skip
    tower = model.config.vision_config
    return {"model_type": "clip_vision_model"} | {key: getattr(tower, key) for key in keys}


def write_tokenizer(folder: Path, *, added: bool) -> None:
    """Characters and three special tokens; with `added` also `<image>` and `<pad>`."""
    letters = "abcdefghijklmnopqrstuvwxyzABCEGIMNRSTUW0123456789 .,:?'\n"
    words = ["<unk>", "<s>", "</s>", *letters]
    words += [chr(0x3B1 + i) for i in range(WORDS - len(words))]
    special = ["<unk>", "<s>", "</s>"] + (["<image>", "<pad>"] if added else [])
    ids = {word: number for number, word in enumerate(words)}
    ids |= {"<image>": IMAGE_ID, "<pad>": PAD_ID} if added else {}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = [{"id": ids[t], "content": t, "special": True, **flags} for t in special]
    write_json(folder, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries,
        "normalizer": None, "pre_tokenizer": None, "decoder": {"type": "Fuse"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, text[0]], "pair": [bos, *text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": False,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": False,
            "ignore_merges": False, "vocab": {w: ids[w] for w in words}, "merges": [],
        },
    })  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {"pad_token": "<pad>"} if added else {}
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256}
    write_json(folder, "tokenizer_config.json", config)
    write_json(folder, "special_tokens_map.json", names)


def write_hf(
    folder: Path,
    model: Model,
    *,
    dtype: torch.dtype = torch.float16,
    names: tuple[tuple[str, str], ...] = TO_4X,
    tokenizer: bool = True,
) -> Tensors:
    """A directory as llava-hf has them, of LLaVA-NeXT too; returns what it holds."""
    grid = getattr(model.config, "image_grid_pinpoints", None)
    kind, canvases = ("LlavaNext", {"image_grid_pinpoints": grid}) if grid else ("Llava", {})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = renamed(tensors_of(model, dtype), names)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder, "config.json", {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": "llava_next" if grid else "llava", **canvases,
        "ignore_index": -100, "image_token_index": IMAGE_ID, "pad_token_id": PAD_ID,
        "projector_hidden_act": "gelu", "vision_feature_layer": -2, "image_seq_length": 4,
        "vision_feature_select_strategy": "default", "torch_dtype": str(dtype)[6:],
        "tie_word_embeddings": model.config.text_config.tie_word_embeddings,
        "text_config": text_config(model, ROWS), "vision_config": vision_config(model),
    })  # fmt: skip
    write_json(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_json(folder, "preprocessor_config.json", {
        "image_processor_type": "LlavaNextImageProcessor" if grid else "CLIPImageProcessor",
        **(canvases and canvases | {"aspect_ratio_setting": "anyres"}),
        "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}, "resample": 3,
        "do_center_crop": True, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })  # fmt: skip
    write_json(folder, "processor_config.json", {
        "processor_class": f"{kind}Processor", "image_token": "<image>", "patch_size": 14,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    })  # fmt: skip
    template = "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }} {% endfor %}"
    write_json(folder, "chat_template.json", {"chat_template": template})
    if tokenizer:
        write_tokenizer(folder, added=True)
    return tensors


def write_original(
    folder: Path,
    model: Model,
    *,
    dtype: torch.dtype = torch.float16,
    tower: bool = True,
    shards: int = 2,
    binary: bool = True,
) -> Tensors:
    """A directory as haotian-liu/LLaVA writes them; returns what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = renamed(tensors_of(model, dtype), TO_ORIGINAL)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][:WORDS].contiguous()
    if not tower:
        tensors = {name: t for name, t in tensors.items() if ".vision_tower." not in name}
    ending, stem = ("bin", "pytorch_model") if binary else ("safetensors", "model")
    write = torch.save if binary else safetensors.torch.save_file
    names, where = sorted(tensors), {}
    for shard in range(shards):
        name = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{ending}"
        part = {tensor: tensors[tensor] for tensor in names[shard::shards]}
        write(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    write_json(folder, f"{stem}.{ending}.index.json", index)
    architecture, model_type = ORIGINAL_TYPES[model.config.text_config.model_type]
    config = text_config(model, WORDS) | {
        "architectures": [architecture], "model_type": model_type,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "some/tower",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "image_aspect_ratio": "pad",
        "pad_token_id": 0, "torch_dtype": str(dtype)[6:],
    }  # fmt: skip
    grid = getattr(model.config, "image_grid_pinpoints", None)
    if grid:  # (width, height) there
        config |= {
            "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[width, height] for height, width in grid],
            "image_crop_resolution": 224, "image_split_resolution": 224,
            "unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 2e-6,
        }  # fmt: skip
    if tower:
        config["mm_vision_config"] = vision_config(model)
    write_json(folder, "config.json", config)
    write_tokenizer(folder, added=False)
    return tensors


def write_parts(clip: Path, llm: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """The tower as a CLIP with both halves, and the decoder as a bare Llama."""
    tensors = tensors_of(model, dtype)
    for folder in (clip, llm):
        folder.mkdir(parents=True, exist_ok=True)
    tower = {
        name.replace("model.vision_tower.", "vision_model."): value
        for name, value in tensors.items()
        if ".vision_tower." in name
    }
    extra = {
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "text_model.embeddings.token_embedding.weight": torch.zeros(3, 2),
        "logit_scale": torch.tensor(2.6),
        "visual_projection.weight": torch.zeros(16, 32),
    }
    torch.save(tower | extra, clip / "pytorch_model.bin")
    tree = {"model_type": "clip", "vision_config": vision_config(model), "text_config": {}}
    write_json(clip, "config.json", tree)
    write_json(clip, "preprocessor_config.json", {"crop_size": 28, "size": 28, "resample": 3})
    decoder = {
        name.replace("model.language_model.", "model."): value[:WORDS].contiguous()
        if "embed_tokens" in name or "lm_head" in name
        else value
        for name, value in tensors.items()
        if ".language_model." in name or "lm_head" in name
    }
    safetensors.torch.save_file(decoder, llm / "model.safetensors", metadata={"format": "pt"})
    write_json(llm, "config.json", text_config(model, WORDS))
    write_tokenizer(llm, added=False)


def read_all(folder: Path) -> Tensors:
    """Every tensor of a directory of safetensors, read with their own library."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(path)
    return found


def assert_same(found: Tensors, expected: Tensors) -> None:
    """Asserts that names, dtypes, shapes and bytes are equal."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        ours, theirs = (t.contiguous().view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(ours, theirs), name
