"""CLIP and SigLIP against transformers: what is read of them, and every gradient."""

import dataclasses

import families
import pytest
from transformers import CLIPVisionConfig, LlamaConfig, SiglipVisionConfig

from astrollava_jax.models import clip, llama, siglip

SHAPE = {
    "image_size": 28, "patch_size": 14, "embed_dim": 32, "mlp_dim": 48, "num_layers": 3,
    "num_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize("pooling", [False, True], ids=["bare", "with its head"])
def test_siglip_equals_that_of_transformers(pooling, tmp_path):
    # 30 pixels do not divide into patches of 14: the rest is left out, as of 384.
    tower = SiglipVisionConfig(**families.TOWER | {"image_size": 30}, vision_use_head=pooling)
    text = LlamaConfig(**families.DECODER, rms_norm_eps=1e-5)
    ours = families.on(llama.LlamaConfig(**families.OURS))
    vision = siglip.SiglipConfig(**SHAPE | {"image_size": 30}, pooling=pooling)
    families.assert_equal_to_transformers(
        families.torch_model(text, tower, "full"),
        tmp_path,
        dataclasses.replace(ours, vision=vision),
    )


def test_a_class_token_may_stay(tmp_path):
    """In a tower with the patches of CLIP's B/16."""
    sixteen = {"image_size": 32, "patch_size": 16}
    tower = CLIPVisionConfig(**families.TOWER | sixteen, projection_dim=16, hidden_act="gelu")
    text = LlamaConfig(**families.DECODER, rms_norm_eps=1e-5)
    ours = families.on(llama.LlamaConfig(**families.OURS))
    vision = clip.ClipConfig(**SHAPE | sixteen, activation="gelu")
    expected = dataclasses.replace(ours, vision=vision, select_feature="cls_patch")
    model = families.torch_model(text, tower, "full")
    families.assert_equal_to_transformers(model, tmp_path, expected)
