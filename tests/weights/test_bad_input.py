"""What can be wrong with a model's files and what is said of it; what is read as something else."""

import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny_directories as tiny
import torch

from astrollava_jax.weights.directory import open_model
from astrollava_jax.weights.save import save

DECODER = "language_model.model."
K_PROJ = f"{DECODER}layers.1.self_attn.k_proj.weight"
NORM = f"{DECODER}layers.1.input_layernorm.weight"
EMBEDDING, HEAD = f"{DECODER}embed_tokens.weight", "language_model.lm_head.weight"


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A sound directory of a whole model, in float16."""
    tiny.write_hf(tmp_path / "hf", model)
    return tmp_path / "hf"


def store(changes):
    """Puts tensors into the file, or with None takes them out."""

    def change(folder: Path) -> None:
        tensors = tiny.read_all(folder) | changes
        kept = {name: value for name, value in tensors.items() if value is not None}
        safetensors.torch.save_file(kept, folder / "model.safetensors")

    return change


def say(part: str | None, **changes):
    """Lets config.json, or a part of it, say something else."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        (tree if part is None else tree[part]).update(changes)
        tiny.write_json(folder, "config.json", tree)

    return change


def name_twice(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entry = content[8 : 8 + length].rstrip().removeprefix(b"{").removesuffix(b"}")
    first = entry[entry.index(b'"language_model') :]
    header = b"{" + entry + b"," + first[: first.index(b"}") + 1] + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def leave_gits_note(folder: Path) -> None:
    note = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    (folder / "model.safetensors").write_text(note)


def add_shards(folder: Path) -> None:
    tensors = tiny.read_all(folder)
    safetensors.torch.save_file(tensors, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    tiny.write_json(folder, "model.safetensors.index.json", index)


def name_a_number(folder: Path) -> None:
    tiny.write_json(folder, "model.safetensors.index.json", {"weight_map": {HEAD: 1}})


def pickle(changes):
    """The same as a `.bin`, with some tensors changed."""

    def change(folder: Path) -> None:
        tensors = tiny.read_all(folder)
        (folder / "model.safetensors").unlink()
        torch.save(tensors | changes, folder / "pytorch_model.bin")

    return change


FP8 = torch.zeros(24, 48).to(torch.float8_e4m3fn)
SPARSE = torch.eye(24, 48).to_sparse()

REFUSED = {
    "two entries of one name": (name_twice, ["model.safetensors: its header is not sound",
        "two entries of language_model.", "fetch it again"]),
    "a note of git": (leave_gits_note, ["model.safetensors", "`git lfs pull`"]),
    "one file and shards": (add_shards, ["holds weights twice", "index.json", "remove those"]),
    "an index of numbers": (name_a_number, ["index.json: expected the name of a file for", HEAD]),
    "fp8 with scales": (
        store({K_PROJ: FP8, f"{K_PROJ}_scale_inv": torch.ones(1, 1)}),
        ["is quantised: 1 tensor(s)", f"{K_PROJ}_scale_inv", "take the model in bfloat16"]),
    "4 bits of bitsandbytes": (
        store({K_PROJ: torch.zeros(576, 1, dtype=torch.uint8),
                 f"{K_PROJ}.absmax": torch.ones(18),
                 f"{K_PROJ}.quant_map": torch.ones(16)}),
        ["is quantised: 2 tensor(s)", f"{K_PROJ}.absmax"]),
    "bytes": (
        store({K_PROJ: torch.zeros(24, 48, dtype=torch.int8)}),
        [f"{K_PROJ}: expected one of float16, bfloat16,", "found int8 in", "model.safetensors"]),
    "zeros that are left out": (
        pickle({K_PROJ: SPARSE}),
        [f"pytorch_model.bin: tensor {K_PROJ}: expected plain numbers, found torch.float32, "
         "torch.sparse_coo"]),
    "a stranger": (
        store({f"{DECODER}layers.1.mlp.router.weight": torch.ones(2)}),
        ["1 fault(s)", f"{DECODER}layers.1.mlp.router.weight: unmapped", "model.safetensors"]),
    "heads": (
        say("text_config", num_attention_heads=2),
        ["4 fault(s)", "layers.0.self_attn.k_proj.weight: expected [48, 48], found [24, 48]",
         "model.safetensors (so 1 more layers)", "correct config.json"]),
    "a layer too many": (
        say("text_config", num_hidden_layers=3),
        ["9 fault(s)", f"{DECODER}layers.2.mlp.up_proj.weight: missing"]),
    "layers too few": (
        say("vision_config", num_hidden_layers=1),
        ["32 fault(s)", "encoder.layers.1.mlp.fc1.weight: unmapped", "(so 1 more layers)"]),
    "a vocabulary": (
        say("text_config", vocab_size=72),
        ["2 fault(s)", f"{EMBEDDING}: expected [72, 48], found [64, 48]"]),
    "patches": (
        say("vision_config", patch_size=7),
        ["patch_embedding.weight: expected [32, 3, 7, 7], found [32, 3, 14, 14]",
         "position_embedding.weight: expected [17, 32], found [5, 32]"]),
    "a tied head that is no copy": (
        say(None, tie_word_embeddings=True),
        [f"{HEAD}: config.json says that it is {EMBEDDING}", "say false to keep both"]),
    "no head": (
        store({HEAD: None}),
        [f"{HEAD}: missing", "config.json says tie_word_embeddings: true"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told(case, folder):
    damage, told = REFUSED[case]
    damage(folder)
    with pytest.raises(ValueError) as error:
        open_model(folder)
    for words in [str(folder), *told]:
        assert words in str(error.value)


NUMBERS = torch.linspace(-3, 3, 24 * 48).reshape(24, 48)
READ = {
    "float8_e4m3fn": (K_PROJ, NUMBERS.to(torch.float8_e4m3fn), "float32", "changes no number"),
    "float8_e5m2": (K_PROJ, NUMBERS.to(torch.float8_e5m2), "float32", "changes no number"),
    "float64": (K_PROJ, NUMBERS.double() / 3, "float32", "rounded"),
    "bfloat16": (NORM, torch.linspace(-1e9, 1e9, 48).bfloat16(), "float32", "changes no number"),
    "float32": (NORM, torch.linspace(-1, 1, 48) / 3, None, None),
}
"""One of two layers, whose other is float16: what is stored, and as what it is read."""


@pytest.mark.parametrize(
    ("stored", "put"), [*((stored, store) for stored in READ), ("float8_e4m3fn", pickle)]
)
def test_a_layer_of_another_kind_is_read_and_said(stored, put, folder, tmp_path):
    name, value, becomes, how = READ[stored]
    before = tiny.read_all(folder)[name.replace("layers.1", "layers.0")]
    put({name: value})(folder)
    source = open_model(folder)
    attention = name is K_PROJ
    address = "llm/layers/attn/k_proj/kernel" if attention else "llm/layers/norm1/scale"
    notes = "\n".join(source.notes)
    assert "1 tensor(s) are float16: read and written as float32, which changes no" in notes
    if becomes:
        assert f"1 tensor(s) are {stored}: read and written as {becomes}, " in notes
        assert how in notes and name in notes
    found = source.read(address)
    assert source.dtype(address) == found.dtype == np.float32
    theirs = [tensor.float().numpy() for tensor in (before, value)]
    found = found.reshape(2, 48, -1).swapaxes(1, 2) if attention else found
    assert np.array_equal(found, np.stack(theirs))
    save(tmp_path / "out", "hf", source)
    assert torch.equal(tiny.read_all(tmp_path / "out")[name], value.float())
    assert open_model(tmp_path / "out").notes == ()


def test_a_whole_model_in_8_bits_becomes_bfloat16(model, tmp_path):
    written = tiny.write_hf(tmp_path / "hf", model, dtype=torch.float8_e4m3fn)
    source = open_model(tmp_path / "hf")
    (note,) = source.notes
    assert f"{len(written)} tensor(s) are float8_e4m3fn: read and written as bfloat16" in note
    save(tmp_path / "out", "hf", source)
    expected = {name: value.bfloat16() for name, value in written.items()}
    tiny.assert_same(tiny.read_all(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert source.fingerprint("llm/norm/scale") != open_model(tmp_path / "out").fingerprint(
        "llm/norm/scale"
    )


def test_what_float32_cannot_hold_is_an_error(folder):
    store({NORM: torch.full((48,), 1e300, dtype=torch.float64)})(folder)
    with pytest.raises(ValueError, match=f"{NORM}: 48 of 48 numbers are too large for float32"):
        open_model(folder).read("llm/layers/norm1/scale")


def test_a_tied_head_that_is_a_copy_is_passed_over(model, folder):
    store({HEAD: tiny.read_all(folder)[EMBEDDING].clone()})(folder)
    say(None, tie_word_embeddings=True)(folder)
    assert "llm/lm_head/kernel" not in open_model(folder).shapes


LAYOUTS = pytest.mark.parametrize("layout", ["hf", "llava", "orbax"])


@LAYOUTS
def test_a_source_that_breaks_midway_leaves_nothing(layout, folder, tmp_path):
    source, path = open_model(folder), folder / "model.safetensors"
    with open(path, "r+b") as handle:
        handle.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model.safetensors: tensor .*: expected .* bytes, found"):
        save(tmp_path / "out", layout, source)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@LAYOUTS
# Orbax leaves futures behind that complain when its loop has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_holds_half_is_left_empty(layout, folder, tmp_path):
    """The system lets no file grow beyond some bytes: writes fail as on a full disk."""
    source, (soft, hard) = open_model(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(Exception, match="File too large"):
            save(tmp_path / "out", layout, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    save(tmp_path / "out", layout, source)
    assert set(open_model(tmp_path / "out").shapes) == set(source.shapes)
