"""Every family through the whole job: parts, stage 1, stage 2, and back to transformers."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import torch
from chat_templates import GEMMA_2, MISTRAL_3, PHI_3, QWEN2
from PIL import Image
from tiny_llava import assert_close
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import astrollava_jax as al
from astrollava_jax.quickstart import vocabulary
from astrollava_jax.run.convert import convert
from astrollava_jax.run.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]

ROWS, WINDOW = 116, 10
"""Rows of the word table, enough for all; positions that Mistral and Gemma-2 look back on."""
TEXT: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": small_run.SIZE, "patch_size": 14,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """A decoder, its tower, and how it is spoken to."""

    text: PreTrainedConfig
    template: str
    bos: str | None
    eos: str
    special: tuple[str, ...]
    """Tokens that the sky's own words lack."""
    siglip: bool = False
    capped: float | None = None
    """What the scores are bent to, which the LLaVA of transformers forgets."""


FAMILIES: dict[str, Callable[[], Family]] = {
    "qwen2 + siglip": lambda: Family(
        Qwen2Config(**TEXT, tie_word_embeddings=True), QWEN2, None, "<|im_end|>",
        ("<|im_start|>", "<|im_end|>"), siglip=True,
    ),
    "gemma2 + clip": lambda: Family(
        Gemma2Config(**TEXT, head_dim=16, sliding_window=WINDOW, final_logit_softcapping=3.0),
        GEMMA_2, "<s>", "</s>", ("<start_of_turn>", "<end_of_turn>"), capped=3.0,
    ),
    "phi3 + clip": lambda: Family(
        Phi3Config(**TEXT), PHI_3, "<s>", "</s>", ("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "mistral + clip": lambda: Family(
        MistralConfig(**TEXT, sliding_window=WINDOW), MISTRAL_3, "<s>", "</s>", (),
    ),
}  # fmt: skip


def write_tokenizer(folder: Path, family: Family) -> None:
    """The sky's words as a decoder has them that saw no picture yet."""
    rust = json.loads(vocabulary.tokenizer_files()["tokenizer.json"])
    place = rust["model"]["vocab"].pop("<image>")
    last = max(rust["model"]["vocab"], key=rust["model"]["vocab"].get)
    rust["model"]["vocab"][last] = place  # no gap where <image> was
    rust["added_tokens"] = [t for t in rust["added_tokens"] if t["content"] != "<image>"]
    tokenizer = Tokenizer.from_str(json.dumps(rust))
    tokenizer.add_special_tokens(
        [AddedToken(text, rstrip=text.startswith("<|"), normalized=False, special=True)
         for text in family.special]
    )  # fmt: skip
    begin = f"{family.bos} $A" if family.bos else "$A"
    ids = [(family.bos, tokenizer.token_to_id(family.bos))] if family.bos else []
    tokenizer.post_processor = TemplateProcessing(
        single=begin, pair=f"{begin} $B", special_tokens=ids
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": family.bos, "eos_token": family.eos, "unk_token": "<unk>",
        "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": family.template,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_parts(folder: Path, family: Family) -> None:
    """A bare tower and a bare decoder, saved by transformers."""
    torch.manual_seed(0)
    if family.siglip:
        tower = SiglipVisionModel(SiglipVisionConfig(**TOWER))
        kind, mean, std = "SiglipImageProcessor", [0.5] * 3, [0.5] * 3
    else:
        tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, projection_dim=16))
        kind, mean = "CLIPImageProcessor", [0.48145466, 0.4578275, 0.40821073]
        std = [0.26862954, 0.26130258, 0.27577711]
    decoder = AutoModelForCausalLM.from_config(family.text)
    for model in (tower, decoder):
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1 and "embed" not in name:
                    value.normal_(0, value[0].numel() ** -0.5)
    tower.save_pretrained(folder / "tower")
    decoder.save_pretrained(folder / "llm")
    pixels: dict[str, Any] = {
        "image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "image_mean": mean, "image_std": std, "resample": 3,
        "size": {"height": small_run.SIZE, "width": small_run.SIZE},
    }  # fmt: skip
    if not family.siglip:
        pixels |= {"size": {"shortest_edge": small_run.SIZE}, "do_center_crop": True,
                   "crop_size": {"height": small_run.SIZE, "width": small_run.SIZE}}  # fmt: skip
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(pixels))
    write_tokenizer(folder / "llm", family)


def trained(sky: Path, stage: int, init: str, out: Path) -> None:
    """Two steps of a stage, each on half of the smaller set."""
    file = small_run.run_file(sky, stage, init, out)
    small = {"data__0__records": str(sky / "heldout"), "batch__samples": 6, "steps": 2}
    train(small_run.read_run(file, **small, evaluate=None, checkpoint={"every_seconds": None}))


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_to_an_export_that_transformers_answers_with(
    name, sky, tmp_path, monkeypatch, capsys
):
    family = FAMILIES[name]()
    write_parts(tmp_path, family)
    joined = f'{{vision: {tmp_path / "tower"}, llm: {tmp_path / "llm"}, fresh: ["projector/.*"]}}'
    with monkeypatch.context() as patched:
        small_run.on_devices(patched, 1)
        trained(sky, 1, joined, tmp_path / "one")
        trained(sky, 2, small_run.model_at(tmp_path / "one"), tmp_path / "two")
    assert f"the vocabulary has {ROWS} rows, which is enough" in capsys.readouterr().out
    losses = [loss for loss, *_ in small_run.curve(tmp_path / "one")]
    losses += [loss for loss, *_ in small_run.curve(tmp_path / "two")]
    assert np.isfinite(losses).all() and len(losses) == 4

    convert(tmp_path / "two", tmp_path / "hf", "hf")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.config.text_config.model_type == family.text.model_type
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8))
    asked = [{"type": "image"}, {"type": "text", "text": "what color is the galaxy?"}]
    told = [{"role": "user", "content": asked}, {"role": "assistant", "content": "blue."}]
    prompt = processor.apply_chat_template([*told, told[0]], add_generation_prompt=True)
    inputs = processor(images=[picture] * 2, text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = theirs.eval()(**inputs).logits.numpy()
    if family.capped:
        logits = family.capped * np.tanh(logits / family.capped)
    model = al.load_model(str(tmp_path / "two"), dtype="float32")
    assert logits.shape[1] > WINDOW + 8
    assert_close(model.logits([[picture] * 2], [prompt]), logits, "logits")
