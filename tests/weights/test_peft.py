"""Adapters in PEFT's and LLaVA's forms: read over their base, written, and loaded by PEFT."""

import numpy as np
import peft
import pytest
import safetensors.torch
import tiny_directories as tiny
import tiny_llava
import torch
from transformers import LlavaForConditionalGeneration

from astrollava_jax.run.convert import convert
from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.recognise import recognise

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # PEFT asks for it
)

RANK, ALPHA = 4, 6
LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A LLaVA of transformers in float32, as a directory."""
    folder = tmp_path_factory.mktemp("base") / "hf"
    tiny.write_hf(folder, tiny_llava.torch_model(), dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter of its decoder with a projector that trained whole, as PEFT saves it."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=rf".*language_model.*\.({LINEAR})",
        modules_to_save=["multi_modal_projector"], task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value.add_(0.2 * torch.randn_like(value))
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload().state_dict()
    return folder, {name: value.detach().clone() for name, value in merged.items()}


def assert_near(source, tensors: dict[str, torch.Tensor]) -> None:
    """The parameters are those of a model of transformers, but for how sums were rounded."""
    for address, expected in tiny_llava.by_address(tensors).items():
        found = source.read(address)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=address)


def test_what_peft_saved_is_read_over_its_base(base, adapter):
    folder, merged = adapter
    assert recognise(folder).name == "peft"
    source = open_model(folder, base=base)
    assert_near(source, merged)
    assert source.folder_of("llm/layers/mlp/up_proj/kernel") == str(folder)
    assert source.folder_of("projector/layers_0/bias") == str(folder)
    assert source.folder_of("vision/post_norm/bias") == str(base)
    assert_near(open_model(folder), merged)  # its config names the base


def test_what_is_written_is_loaded_by_peft(base, adapter, tmp_path):
    folder, merged = adapter
    convert(folder, tmp_path / "again", "peft", bases=[str(base)])
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(model, str(tmp_path / "again"))
    found = again.merge_and_unload().state_dict()
    assert set(found) == set(merged)
    for name, expected in merged.items():
        assert torch.equal(found[name], expected), name
    first, second = (
        safetensors.torch.load_file(path / "adapter_model.safetensors")
        for path in (folder, tmp_path / "again")
    )
    tiny.assert_same(second, first)


def test_merged_weights_are_those_of_peft(base, adapter, tmp_path):
    folder, merged = adapter
    with pytest.raises(ValueError, match=r"`--merge` writes full weights.*`--layout peft`"):
        convert(folder, tmp_path / "no", "hf", bases=[str(base)])
    convert(folder, tmp_path / "hf", "hf", bases=[str(base)], merge=True)
    whole = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for name, expected in merged.items():
        torch.testing.assert_close(whole.state_dict()[name], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="has no adapters; leave it out"):
        convert(base, tmp_path / "no", "hf", merge=True)
    with pytest.raises(ValueError, match="writes adapters alone: .* has none"):
        convert(base, tmp_path / "no", "peft")
    assert not (tmp_path / "no").exists()
