"""`train --dry-run`, read as a person reads it."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import tiny_directories as tiny
import tiny_llava
import tiny_records

from astrollava_jax.batch import Batch, ImageFacts
from astrollava_jax.cli.main import main
from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.rows import RowShape, Sample, Slot, build_row
from astrollava_jax.data.samples import expand
from astrollava_jax.data.tiles import layout, one_image
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.run.decoded import sample_text
from astrollava_jax.run.dry_run import verdict

RUN = """
out: {folder}/run
epochs: 2
init: {{model: {folder}/hf}}
data:
  - {{records: {folder}/grey, template: plain}}
  - {{records: {folder}/grey, template: vicuna_v1, weight: 0.5}}
batch: {{samples: 12, length: 256, rows_per_device: 1}}
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {{type: linear, warmup_fraction: 0.1}}
mesh: {{data: 2, fsdp: 2, tensor: 2}}
evaluate: {{records: {folder}/grey, every_steps: 3}}
workers: 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model, sixteen records, and the file of a run on them."""
    folder = tmp_path_factory.mktemp("dry")
    tiny.write_hf(folder / "hf", tiny_llava.torch_model())
    tiny_records.write(folder / "grey", 16)
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return folder


@pytest.fixture
def shown(folder, capsys):
    """Makes a dry run and returns what it shows."""

    def run(*overrides: str) -> str:
        assert main(["train", str(folder / "run.yaml"), "--dry-run", *overrides]) == 0
        return capsys.readouterr().out

    return run


def test_the_plan_is_told_in_figures_that_can_be_checked(folder, shown):
    said = shown()
    assert "mesh: data 2 x fsdp 2 x tensor 2 = 8 device(s), cpu; frozen weights sharded: " in said
    assert "as the config says" in said
    assert "\nremat: dots_attention, by which some" in said and "; remat dots_attention" in said
    # 1.5 x 16 records in an epoch: 12 and 12 samples. Two epochs.
    assert "steps: 4 steps of 12 samples, warm-up 1 steps, schedule linear" in said
    assert "data: 48 samples in 2 epoch(s)" in said
    assert f"16 records x 0.5, template vicuna_v1, image pad: {folder}/grey" in said
    assert f"held out, every 3 steps: 16 records: {folder}/grey" in said
    # 32 x 48 + 48 and 48 x 48 + 48 numbers, in a weight, two moments and a gradient of 4 bytes.
    numbers = 32 * 48 + 48 + 48 * 48 + 48
    assert f"{numbers:,}    {numbers * 16 / 1024:.4g} KiB   projector/.*" in said
    rows = [line.split() for line in said.splitlines() if "x 256 " in line or "x 512 " in line]
    assert [row[:2] for row in rows] == [["1x", "256"], ["2x", "512"]]
    assert all(int(row[2]) % 4 == 0 for row in rows), "rows divide over data x fsdp"
    assert "the batch of step 1: 12 samples" in said
    assert not (folder / "run").exists()


def test_longer_rows_cut_less(folder, shown):
    # A letter is a token, <s> and the line's end are two, a picture four: 22, 16, 37 and 14
    # positions, four times each.
    sets = f"[{{records: {folder}/grey, template: plain}}]"
    rows = [line.split() for line in shown("--batch.length", "16", "--data", sets).splitlines()]
    cut = {row[1]: row[-1] for row in rows if row[:1] in (["1x"], ["2x"], ["4x"])}
    assert cut == {"16": "8", "32": "4", "64": "0"}


def test_the_verdict_on_memory():
    assert verdict(2**20, None) == "the device does not tell how much it has"
    fits = "fits in 16.00 GiB, and leaves 12.00 GiB for activations"
    assert verdict(4 * 2**30, 16 * 2**30) == fits
    assert verdict(16 * 2**30, 16 * 2**30).startswith("DOES NOT FIT in 16.00 GiB")


def test_a_run_that_would_go_on_says_from_where(folder, shown):
    elsewhere = ("--out", f"{folder}/done")
    assert f"run: {folder}/done\n" in shown(*elsewhere)
    assert not (folder / "done").exists()
    assert main(["train", str(folder / "run.yaml"), *elsewhere]) == 0
    last = max(int(path.name) for path in (folder / "done" / "checkpoints").iterdir())
    before = content(folder / "done")
    assert f"run: {folder}/done, going on after step {last}\n" in shown(*elsewhere)
    assert content(folder / "done") == before


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FACTS = ImageFacts(28, 14, 4, (0, 0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

DIALOGUE = (
    Turn("human", "<image>\nWhat is  this? <s>"),
    Turn("assistant", "An émigré.\n\nTwo lines."),
    Turn("human", "Is it?"),
    Turn("assistant", "Yes."),
)


def batch_of(tokenizer: Tokenizer, template: str, *num_images: int) -> Batch:
    """One row: a sample per number of images, and room behind them."""
    samples = []
    for number, images in enumerate(num_images):
        turns = DIALOGUE if images == 1 else DIALOGUE[2:]
        rendered = chat.render("x", turns, "two stars.", template, tokenizer, images)
        layouts = [one_image(FACTS)] * images
        words = expand(rendered, tokenizer.image_id, layouts, FACTS.tokens, 1000)
        slot = Slot(number, number, len(words.tokens), images, words.num_learned)
        samples.append(Sample(slot, words, ()))
    row = build_row(samples, RowShape(1000, 500, 4, 8), FACTS, tokenizer.pad_id)
    return row.map(lambda field: field[None])


def test_samples_are_marked_where_they_are_learned(folder):
    tokenizer = Tokenizer.from_folder(folder / "hf")
    batch = batch_of(tokenizer, "plain", 1, 2)
    texts = [sample_text(batch, 0, segment, tokenizer, FACTS.tokens) for segment in (1, 2)]
    assert [text.plain for text in texts] == [
        "<s><image x4>«two stars.↵»",
        "<s><image x4><image x4>«two stars.↵»",
    ]
    styled = [texts[0].plain[span.start : span.end] for span in texts[0].spans]
    assert styled == ["«two stars.↵»"]


def test_pictures_in_tiles_are_told_by_their_positions(folder):
    tokenizer = Tokenizer.from_folder(folder / "hf")
    facts = dataclasses.replace(FACTS, grid=((28, 56), (56, 56)))
    layouts = [layout((30, 60), facts), one_image(facts), layout((60, 60), facts)]
    rendered = chat.render("x", DIALOGUE[2:], "two stars.", "plain", tokenizer, 3)
    words = expand(rendered, tokenizer.image_id, layouts, facts.tokens, 1000)
    slot = Slot(0, 0, len(words.tokens), words.num_images, words.num_learned)
    row = build_row([Sample(slot, words, ())], RowShape(1000, 500, 9, 8), facts, tokenizer.pad_id)
    text = sample_text(row.map(lambda field: field[None]), 0, 1, tokenizer, facts.tokens)
    assert text.plain == "<s><image x14><image x4><image x24>«two stars.↵»"


@pytest.mark.skipif(
    "ASTROLLAVA_TEST_TOKENIZERS" not in os.environ,
    reason="ASTROLLAVA_TEST_TOKENIZERS names no folder with real tokenizers",
)
def test_no_space_is_lost_where_learning_begins(tmp_path):
    where = Path(os.environ["ASTROLLAVA_TEST_TOKENIZERS"])
    (tmp_path / "tokenizer.model").write_bytes((where / "llama2.model").read_bytes())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.from_folder(tmp_path)
    batch = batch_of(tokenizer, "vicuna_v1", 1)
    system, _, said = sample_text(batch, 0, 1, tokenizer, FACTS.tokens).plain.partition(" USER: ")
    assert system.startswith("<s>A chat between")
    assert said == (
        "<image x4>↵\nWhat is  this? <s> ASSISTANT:« An émigré.↵\n↵\nTwo lines.</s>»"
        "USER: Is it? ASSISTANT:« Yes.</s>»"
    )
