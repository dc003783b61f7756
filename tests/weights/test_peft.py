"""Adapters in PEFT's and LLaVA's forms: read over their base, written, and loaded by PEFT."""

import json
import shutil
from pathlib import Path

import families
import numpy as np
import peft
import pytest
import safetensors.torch
import tiny_directories as tiny
import tiny_llava
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Phi3Config,
)

from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_any
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
        for value in adapted.parameters():
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
    with pytest.raises(ValueError, match=r"writes adapters alone: .* has none"):
        convert(base, tmp_path / "no", "peft")
    assert not (tmp_path / "no").exists()


def test_an_adapter_of_an_original_model_is_in_the_form_of_llava(adapter, tmp_path):
    """Decoder names as PEFT has them on LLaVA's own class; the projector in a file of its own."""
    model = tiny_llava.torch_model()
    tiny.write_original(tmp_path / "base", model, dtype=torch.float32)
    trained = open_any(str(adapter[0]))
    convert(_as_llava(adapter[0], tmp_path / "lora"), tmp_path / "again", "peft",
            bases=[str(tmp_path / "base")])  # fmt: skip
    again = open_any(str(tmp_path / "again"))
    assert again.source.image_mode == "pad"
    for address in trained.changed:
        expected = np.asarray(trained.changed[address])
        assert np.array_equal(np.asarray(again.changed[address]), expected), address
    decoder = LlamaForCausalLM(model.config.text_config)
    decoder.load_state_dict(
        {name.replace("model.language_model.", "model."): value
         for name, value in model.state_dict().items()
         if "language_model" in name or "lm_head" in name}
    )  # fmt: skip
    merged = peft.PeftModel.from_pretrained(decoder, str(tmp_path / "again")).merge_and_unload()
    for name, value in merged.state_dict().items():
        theirs = adapter[1][name.replace("model.", "model.language_model.", 1)]
        assert torch.equal(value, theirs), name


def _as_llava(adapter: Path, folder: Path) -> Path:
    """The same numbers as LLaVA saves them."""
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    tiny.write_json(folder, "adapter_config.json", config | {"modules_to_save": None})
    tiny.write_json(folder, "config.json", {"image_aspect_ratio": "pad"})
    tensors = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    lora = {name: value for name, value in tensors.items() if "lora_" in name}
    torch.save({n.replace("model.language_model.", "model."): t for n, t in lora.items()},
               folder / "adapter_model.bin")  # fmt: skip
    whole = tiny.renamed(
        {n.removeprefix("base_model.model."): t for n, t in tensors.items() if n not in lora},
        tiny.TO_ORIGINAL,
    )
    torch.save({f"base_model.model.{n}": t for n, t in whole.items()},
               folder / "non_lora_trainables.bin")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora: expected False, found True"),
        (
            {"peft_type": "IA3", "bias": "all"},
            "peft_type: expected 'LORA', found 'IA3'\n  bias: exp",
        ),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: expected {}, found"),
        ({"r": None}, "r and lora_alpha: expected numbers above 0, found None and 6"),
        ({"lora_alpha": float("nan")}, "expected numbers above 0, found 4 and nan"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: .* found 'pissa'"),
        ({"layers_to_transform": [1]}, "layers_to_transform: expected none, found"),
        ({"base_model_name_or_path": ["x"]}, "which is no directory here: give --base"),
        ({"r": 8}, r"lora_A.weight: expected \[8, 48\], found \[4, 48\]"),
        ({"base_model_name_or_path": "some/where"}, "'some/where', which is no directory here"),
    ],
)
def test_what_is_not_ours_is_refused(adapter, tmp_path, changes, said):
    config = json.loads((adapter[0] / "adapter_config.json").read_text())
    tiny.write_json(tmp_path, "adapter_config.json", config | changes)
    (tmp_path / "adapter_model.safetensors").symlink_to(adapter[0] / "adapter_model.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        open_model(tmp_path)


def test_an_adapter_is_not_put_upon_itself_or_unsaid_upon_another(base, adapter, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter: give one whole model as its --base"):
        open_model(adapter[0], base=adapter[0])
    other = tmp_path / "other"
    tiny.write_hf(other, tiny_llava.torch_model(seed=1), dtype=torch.float32)
    note = f"the adapter names '{base}' as its base, it is put upon {other}"
    assert note in open_model(adapter[0], base=other).notes
    assert not [n for n in open_model(adapter[0], base=base).notes if "names" in n]


def test_an_adapter_of_a_tensor_that_is_several_of_ours_is_refused(tmp_path):
    model = families.torch_model(Phi3Config(**families.DECODER))
    model.save_pretrained(tmp_path / "base")
    tiny.write_json(tmp_path, "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    start = "base_model.model.model.language_model.layers.0.self_attn.qkv_proj"
    halves = {"lora_A": torch.zeros(4, 48), "lora_B": torch.zeros(96, 4)}
    named = {f"{start}.{half}.weight": value for half, value in halves.items()}
    safetensors.torch.save_file(named, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its base .*qkv_proj.*merge the adapter"):
        open_model(tmp_path, base=tmp_path / "base")


def test_an_adapter_over_a_wrong_base_is_told_in_one_sentence(adapter, tmp_path):
    model = tiny_llava.torch_model()
    tiny.write_parts(tmp_path / "clip", tmp_path / "llm", model)
    with pytest.raises(ValueError, match=r"/llm holds a bare decoder: give one whole model"):
        open_model(adapter[0], base=tmp_path / "llm")
    other = families.torch_model(LlamaConfig(**families.DECODER | {"hidden_size": 64}))
    tiny.write_hf(tmp_path / "wide", other)
    with pytest.raises(ValueError) as error:
        open_model(adapter[0], base=tmp_path / "wide")
    told = str(error.value)
    assert told.startswith(f"{adapter[0]}: was trained on another model than {tmp_path}/wide")
    assert "\n" not in told and "expected [64, 32], found [48, 32]" in told


def test_why_no_adapter_is_written_is_said(base, adapter, tmp_path):
    said = f"its base has another image size or grid than {base} has; write full weights with"
    with pytest.raises(ValueError, match=said):
        convert(adapter[0], tmp_path / "again", "peft", bases=[str(base)], image_size=42)
    model = tiny_llava.torch_model()
    written = tiny.write_hf(tmp_path / "mixed", model, dtype=torch.float32)
    name = "language_model.model.norm.weight"
    mixed = written | {name: written[name].double()}
    safetensors.torch.save_file(mixed, tmp_path / "mixed" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"its base is not as .*/mixed is: 1 tensor\(s\) are float64"
    ):
        convert(adapter[0], tmp_path / "again", "peft", bases=[str(tmp_path / "mixed")])


def test_numbers_that_are_none_are_not_merged(base, adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    names = sorted(tensors)[:2]
    tensors[names[0]][0, :3] = torch.nan
    tensors[names[1]][0, 1] = -torch.inf
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"2 of its \d+ tensors hold NaN or infinity") as error:
        open_model(tmp_path / "lora", base=base)
    sizes = [tensors[name].numel() for name in names]
    lines = str(error.value).splitlines()[1:]
    stems = [name.removeprefix("base_model.model.") for name in names]
    assert lines == [f"  {stems[0]}: 3 of {sizes[0]}", f"  {stems[1]}: 1 of {sizes[1]}"]


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    config = json.loads((adapter[0] / "adapter_config.json").read_text())
    tiny.write_json(tmp_path, "adapter_config.json", config)
    with pytest.raises(FileNotFoundError, match=r"weights in adapter_model.safetensors or"):
        open_model(tmp_path)
    strange = {"base_model.model.transformer.h.0.attn.lora_A.weight": torch.zeros(4, 48)}
    safetensors.torch.save_file(strange, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"belongs to a module of the base: found transformer\.h"):
        open_model(tmp_path)
