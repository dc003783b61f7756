"""Directories of models: recognised by their files, read, and refused with reasons."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_directories as tiny
import tiny_llava
import torch
from jax.sharding import NamedSharding, PartitionSpec

from astrollava_jax.models.llava import logical_axes
from astrollava_jax.sharding import MeshConfig, placements
from astrollava_jax.weights import llava
from astrollava_jax.weights.directory import join, open_model
from astrollava_jax.weights.load import load
from astrollava_jax.weights.recognise import recognise
from astrollava_jax.weights.save import save
from astrollava_jax.weights.source import Overlay

PROJECTOR = tuple(f"projector/layers_{i}/{part}" for i in (0, 1) for part in ("bias", "kernel"))


def numbers(model):
    return tiny_llava.by_address(dict(model.named_parameters()))


def edit(folder, name, **changes):
    tree = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(tree))


def test_layouts_are_told_by_files(hf, original, parts, tmp_path):
    clip, llm = parts
    found = [recognise(folder).name for folder in (hf[0], original[0], clip, llm)]
    assert found == ["hf", "llava", "tower", "decoder"]
    old = tmp_path / "old"
    old.mkdir()
    tiny.write_json(old, "config.json", {"model_type": "llava", "mm_hidden_size": 1024})
    assert recognise(old).name == "llava"


def test_an_unknown_directory_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the directory of a model"):
        recognise(tmp_path / "absent")
    (tmp_path / "README.md").write_text("{}")
    with pytest.raises(ValueError, match=r"hf: config.json with(.|\n)*found README.md"):
        recognise(tmp_path)
    tiny.write_json(tmp_path, "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match=r"found model_type 'bert' in config.json"):
        recognise(tmp_path)


@pytest.mark.parametrize("names", [tiny.TO_4X, tiny.TO_4_52, ()], ids=["4.x", "4.52", "5.x"])
def test_every_spelling_of_hf_gives_the_same_numbers(model, tmp_path, names):
    tiny.write_hf(tmp_path, model, dtype=torch.float32, names=names, tokenizer=False)
    source = open_model(tmp_path)
    assert source.config == tiny_llava.our_config()
    for address, expected in numbers(model).items():
        found = source.read(address)
        assert found.dtype == source.dtype(address) == np.float32
        assert np.array_equal(found, expected), address


def test_what_transformers_saves_is_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    source = open_model(tmp_path)
    assert source.config == tiny_llava.our_config()
    for address, expected in numbers(model).items():
        assert np.array_equal(source.read(address), expected), address


def test_tied_embeddings_are_one_parameter(tmp_path):
    model = tiny_llava.torch_model(tie=True)
    written = tiny.write_hf(tmp_path / "hf", model, dtype=torch.float32)
    source = open_model(tmp_path / "hf")
    assert source.config.llm.tie_embeddings
    assert "llm/lm_head/kernel" not in source.shapes
    save(tmp_path / "again", "hf", source)
    tiny.assert_same(tiny.read_all(tmp_path / "again"), written)
    embedding = written["language_model.model.embed_tokens.weight"]
    both = written | {"language_model.lm_head.weight": embedding.clone()}
    safetensors.torch.save_file(both, tmp_path / "hf" / "model.safetensors")
    assert open_model(tmp_path / "hf").fingerprint("llm/embed/embedding") == source.fingerprint(
        "llm/embed/embedding"
    )


def test_the_vocabulary_grows_by_the_mean(original, tmp_path):
    folder, written = original
    source = open_model(folder)
    assert source.config.llm.vocab_size == tiny.ROWS
    assert source.words == tiny.WORDS
    assert "grew from 61 to 64 rows: <image> is 61, the pad 62" in source.notes[0]
    for name, address, dim in (
        ("model.embed_tokens.weight", "llm/embed/embedding", 0),
        ("lm_head.weight", "llm/lm_head/kernel", 1),
    ):
        old = written[name].numpy()
        mean = old.astype(np.float64).mean(0).astype(np.float16)
        table = np.moveaxis(source.read(address), dim, 0)
        assert np.array_equal(table[: tiny.WORDS], old)
        assert np.array_equal(table[tiny.WORDS :], np.stack([mean] * 3))
    assert np.array_equal(
        source.read("llm/embed/embedding", np.s_[59:63, 4:6]),
        source.read("llm/embed/embedding")[59:63, 4:6],
    )


def test_a_tower_that_is_only_named_must_be_given(model, parts, tmp_path):
    written = tiny.write_original(tmp_path / "llava", model, tower=False, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"not in it: give --vision DIR .* of some/tower"):
        open_model(tmp_path / "llava")
    source = open_model(tmp_path / "llava", vision=parts[0])
    assert source.folder_of("vision/class_token/embedding") == str(parts[0])
    assert source.folder_of("llm/norm/scale") == str(tmp_path / "llava")
    for address, expected in numbers(model).items():
        if address.startswith("vision/"):
            assert np.array_equal(source.read(address), expected), address
    save(tmp_path / "whole", "llava", source)
    found = tiny.read_all(tmp_path / "whole")
    tiny.assert_same({name: found[name] for name in written}, written)
    assert len(found) == len(written) + 5 + 2 + 16 * 3


def test_joined_parts_have_a_fresh_projector(model, parts, tmp_path):
    clip, llm = parts
    source = join(clip, llm)
    assert source.missing == tuple(sorted(source.missing)) == PROJECTOR
    assert not set(PROJECTOR) & set(source.shapes)
    assert source.config == tiny_llava.our_config()
    assert "grew" in source.notes[0]
    with pytest.raises(ValueError, match="have no numbers"):
        load(source, ["projector/layers_0/bias"])
    with pytest.raises(ValueError, match="have no numbers"):
        save(tmp_path / "hf", "hf", source)
    assert not (tmp_path / "hf").exists()
    fresh = {address: numbers(model)[address] for address in PROJECTOR}
    save(tmp_path / "hf", "hf", source, fresh)
    again = open_model(tmp_path / "hf")
    assert again.missing == ()
    assert again.dtype("projector/layers_0/kernel") == source.dtype("llm/embed/embedding")
    save(tmp_path / "bare", "decoder", again)
    assert join(clip, tmp_path / "bare").words == again.words == tiny.WORDS
    with pytest.raises(ValueError, match=r"a bare decoder and --llm .* a vision tower: exchange"):
        join(llm, clip)
    with pytest.raises(ValueError, match="holds a bare decoder"):
        open_model(llm)


def test_all_faults_come_at_once(model, tmp_path):
    tensors = tiny.write_hf(tmp_path, model)
    layer = "language_model.model.layers.1."
    del tensors[f"{layer}mlp.up_proj.weight"]
    tensors[f"{layer}self_attn.k_proj.weight"] = torch.zeros(7, 48, dtype=torch.float16)
    tensors["language_model.model.norm.weight"] = torch.zeros(48, dtype=torch.int32)
    tensors["language_model.model.layers.2.input_layernorm.weight"] = torch.zeros(48)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        open_model(tmp_path)
    message = str(error.value)
    for line in (
        "4 fault(s)",
        f"{layer}mlp.up_proj.weight: missing (it gives llm/layers/mlp/up_proj/kernel)",
        f"{layer}self_attn.k_proj.weight: expected [24, 48], found [7, 48]",
        "norm.weight: expected one of float16, bfloat16, float32, float8_e4m3fn, float8_e5m2, "
        "float64, found int32",
        "language_model.model.layers.2.input_layernorm.weight: unmapped",
    ):
        assert line in message
    assert "position_ids" not in message


def test_a_model_that_ours_is_not_is_refused(model, tmp_path):
    tiny.write_hf(tmp_path / "hf", model)
    tree = json.loads((tmp_path / "hf" / "config.json").read_text())
    tree["text_config"] |= {"rope_scaling": {"factor": 8.0}, "hidden_act": "gelu"}
    tree["vision_feature_layer"] = [-2, -5]
    tiny.write_json(tmp_path / "hf", "config.json", tree)
    with pytest.raises(ValueError) as error:
        open_model(tmp_path / "hf")
    for line in ("rope_scaling: expected the type linear or llama3, found None",
                 "hidden_act: expected 'silu', found 'gelu'",
                 "vision_feature_layer: expected one layer"):  # fmt: skip
        assert line in str(error.value)
    tiny.write_original(tmp_path / "next", model)
    edit(
        tmp_path / "next",
        "config.json",
        image_aspect_ratio="anyres_max_9",
        mm_projector_type="resam",
    )
    with pytest.raises(
        ValueError, match=r"'anyres_max_9'\n  mm_projector_type: expected 'linear' or"
    ):
        open_model(tmp_path / "next")


def test_a_tokenizer_that_does_not_fit_is_refused(model, tmp_path):
    tiny.write_hf(tmp_path / "hf", model)
    edit(tmp_path / "hf", "config.json", image_token_index=5)
    with pytest.raises(ValueError, match=r"<image> is 61 there, and image_token_index is 5"):
        open_model(tmp_path / "hf")
    tiny.write_original(tmp_path / "llava", model)
    tokenizer = json.loads((tmp_path / "llava" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = tiny.WORDS
    tiny.write_json(tmp_path / "llava", "tokenizer.json", tokenizer)
    with pytest.raises(ValueError, match="it has 62 words, the embedding 61 rows"):
        open_model(tmp_path / "llava")


def test_fingerprints_are_of_the_bytes_in_the_file(hf, original, tmp_path):
    source = open_model(hf[0])
    found = {address: source.fingerprint(address) for address in source.shapes}
    assert all(len(value) == 32 for value in found.values())
    other = open_model(original[0])
    assert found["llm/layers/mlp/up_proj/kernel"] == other.fingerprint(
        "llm/layers/mlp/up_proj/kernel"
    )
    assert found["llm/embed/embedding"] != other.fingerprint("llm/embed/embedding")


def test_parameters_go_straight_to_their_shards(hf):
    source = open_model(hf[0])
    mesh = MeshConfig(data=1, fsdp=2, tensor=2).build(jax.devices()[:4])
    axes = logical_axes(source.config.abstract())
    shardings = placements(axes, source.shapes, mesh)
    params = load(source, source.shapes, shardings=shardings, dtypes="float32")
    for address, array in params.items():
        assert array.sharding == shardings[address]
        assert np.array_equal(array, source.read(address).astype(np.float32)), address
    kept = load(source, ["llm/norm/scale"], dtypes={"llm/norm/scale": "bfloat16"})
    assert kept["llm/norm/scale"].dtype == "bfloat16"


def test_a_host_reads_a_parameter_once_for_all_its_devices(hf):
    source = open_model(hf[0])
    address = "llm/layers/mlp/up_proj/kernel"
    read = []

    class Watched(Overlay):
        def read(self, address, index=None):
            read.append(index)
            return super().read(address, index)

    mesh = MeshConfig(data=1, fsdp=1, tensor=2).build(jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    found = load(Watched(source, {}, "run"), [address], shardings={address: sharding})[address]
    assert read == [(slice(0, 2), slice(0, 48), slice(0, 80))]
    assert np.array_equal(found, source.read(address))
    assert found.addressable_shards[1].data.shape == (2, 48, 40)


def test_our_layout_is_checked(hf, tmp_path):
    folder = tmp_path / "ours"
    save(folder, "orbax", open_model(hf[0]))
    source = open_model(folder)
    assert source.folder_of("llm/norm/scale") == str(folder)
    assert set(source.shapes) == set(llava.shapes(source.config))
    edit(folder, "astrollava.json", format=99)
    with pytest.raises(ValueError, match=r"expected format 1 in astrollava.json, found 99"):
        open_model(folder)
    facts = json.loads((folder / "astrollava.json").read_text())
    facts["config"]["llm"]["mlp_dim"] = 81
    edit(folder, "astrollava.json", format=1, config=facts["config"])
    with pytest.raises(ValueError, match=r"mlp/up_proj/kernel: expected \[2, 48, 81\], found"):
        open_model(folder)
