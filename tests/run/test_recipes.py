"""The recipe files: steps, rates and fates as published, and each of them as it resolves."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_directories as tiny
import tiny_llava
import tiny_records

from astrollava_jax import config
from astrollava_jax.cli.main import main
from astrollava_jax.data.lengths import Lengths
from astrollava_jax.data.mixture import Mixture
from astrollava_jax.data.pack import RunPlan
from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.stage import describe

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "configs"


@dataclasses.dataclass(frozen=True)
class Published:
    """What LLaVA-1.5, LLaVA-NeXT and AstroLLaVA state, or what follows from what they state."""

    records: int
    samples: int
    steps: int
    warmup: int
    template: str
    image: str
    rates: dict[str, float]
    length: int = 2048


ALIGN = {"template": "plain", "image": "crop", "rates": {"projector": 1e-3}}
INSTRUCT = {
    "template": "vicuna_v1",
    "image": "pad",
    "rates": {"projector": 2e-5, "llm": 2e-5},
}
NEXT_ALIGN = ALIGN | {"image": "anyres", "length": 4096}
NEXT_INSTRUCT = INSTRUCT | {
    "image": "anyres",
    "length": 4096,
    "rates": {"projector": 2e-5, "llm": 2e-5, "vision": 2e-6},
}
ADAPT = {
    "template": "vicuna_v1",
    "image": "pad",
    "rates": {"lora": 2e-4, "projector": 2e-5},
}
PUBLISHED = {
    "stage1_align": Published(558_128, 256, 2181, 66, **ALIGN),
    "stage2_instruct": Published(665_298, 128, 5198, 156, **INSTRUCT),
    "stage1_align_v5e1": Published(558_128, 256, 2181, 66, **ALIGN),
    "stage2_qlora_v5e1": Published(665_298, 128, 5198, 156, **ADAPT),
    "astro_stage1": Published(29_783, 128, 233, 7, **ALIGN),
    "astro_stage2": Published(29_783, 64, 466, 14, **INSTRUCT),
    "astro_next_stage1": Published(29_783, 256, 117, 4, **NEXT_ALIGN),
    "astro_next_stage2": Published(29_783, 128, 233, 7, **NEXT_INSTRUCT),
    "astro_stage2_lora": Published(29_783, 64, 466, 14, **ADAPT),
    "astro_stage2_qlora": Published(29_783, 64, 466, 14, **ADAPT),
}

NUMBERS = {"projector": 20_979_712, "llm": 6_738_939_904, "vision": 303_507_456}
"""Parameters of LLaVA-1.5-7B with 32,064 words."""

GRID = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""LLaVA-NeXT's image_grid_pinpoints."""

ADAPTERS = 319_815_680
"""Those of LLaVA's LoRA of rank 128 for it."""


@pytest.fixture(params=PUBLISHED)
def name(request) -> str:
    return request.param


@pytest.fixture
def published(name) -> Published:
    return PUBLISHED[name]


@pytest.fixture
def run(name) -> RunConfig:
    return config.load(RunConfig, str(ROOT / "configs" / f"{name}.yaml"))


def test_every_other_run_file_is_for_real_input():
    stems = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    others = stems - set(PUBLISHED)
    assert others == {"stellarium_stage1", "stellarium_stage2"}
    for stem in others:
        config.load(RunConfig, str(ROOT / "configs" / f"{stem}.yaml"))


def some_lengths(count: int) -> Lengths:
    """A picture and some words in every record, mostly few."""
    words = np.random.default_rng(0).exponential(150, count).astype(np.int32) + 8
    tokens = np.minimum(576 + words, 2048)
    return Lengths(tokens, np.ones(count, np.int32), words // 2, 576 + words)


def test_steps_and_samples_are_the_published_ones(run, published):
    mixture = Mixture([range(published.records)], [run.data[0].weight], run.seed)
    lengths = some_lengths(published.records)
    # Which samples make a step does not hang on the rows that they fill, and filling them is slow.
    batch = dataclasses.replace(run.batch, packing=published.records < 100_000)
    plan = RunPlan(mixture, lengths, batch, epochs=run.epochs, steps=run.steps)
    counts = [plan.samples(step) for step in range(plan.total_steps)]
    assert len(counts) == published.steps
    assert set(counts[:-1]) == {published.samples}
    assert sum(counts) == published.records


def test_rates_are_the_published_ones(run, published):
    assert {group.name: group.peak_lr for group in run.optimizer.groups} == published.rates
    total, warmup = published.steps, published.warmup
    rate = run.optimizer.schedule.build(1.0, total)
    for step in (0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1, total):
        after = math.pi * (step - warmup) / (total - warmup)
        expected = step / warmup if step < warmup else 0.5 * (1 + math.cos(after))
        assert float(rate(jnp.int32(step))) == pytest.approx(expected, abs=1e-6), step


def test_fates_are_the_published_ones(name, run, published):
    newline = {"image_newline": 4096} if "next" in name else {}
    model = describe(run, llava_1_5_7b(GRID if newline else None))
    expected = NUMBERS | newline | ({"lora": ADAPTERS} if run.lora else {})
    found = dict.fromkeys(expected, 0)
    for address, fate in model.fates.items():
        part = "lora" if "/lora_" in address else address.split("/")[0]
        group = "projector" if part == "image_newline" else part
        assert fate == (group if group in published.rates else "frozen")
        found[part] += math.prod(model.shapes[address].shape)
    assert found == expected


STORED = {"astro_stage2_qlora": "nf4", "stage2_qlora_v5e1": "nf4", "stage1_align_v5e1": "int8"}
"""The recipes that keep kernels in fewer bits."""


def test_kernels_are_kept_in_few_bits_where_the_recipe_says_so(name, run):
    model, form = describe(run, llava_1_5_7b()), STORED.get(name, "bfloat16")
    assert run.precision.frozen == form
    assert bool(model.stores) == (name in STORED)
    if form == "nf4":
        kernels = [model.shapes[address].size for address in model.stores]
        forms = [jax.eval_shape(how, model.shapes[a]) for a, how in model.stores.items()]
        assert sum(kernels) == 6_476_005_376  # 32 layers of 4 x 4096^2 + 3 x 4096 x 11,008
        # Half a byte for a number, and four for 64 of them.
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(forms))
        assert held * 16 == 9 * sum(kernels)


def llava_1_5_7b(grid=None) -> LlavaConfig:
    return LlavaConfig(
        grid=grid,
        vision=ClipConfig(
            image_size=336, patch_size=14, embed_dim=1024, mlp_dim=4096, num_layers=24, num_heads=16
        ),
        projector=MlpConfig(depth=2),
        llm=LlamaConfig(
            vocab_size=32_064, embed_dim=4096, mlp_dim=11_008, num_layers=32, num_heads=32,
            num_kv_heads=32, head_dim=128,
        ),
    )  # fmt: skip


def test_everything_else_is_the_published_one(run, published):
    (data,) = run.data
    assert (data.template, data.image, data.weight) == (published.template, published.image, 1.0)
    assert (run.epochs, run.batch.length) == (1, published.length)
    optimizer = run.optimizer
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.0, None)
    assert {group.weight_decay for group in optimizer.groups} == {None}
    assert (run.precision.compute, run.precision.trainable) == ("bfloat16", "float32")


FRESH = {
    "stage1_align": ("projector/.*",),
    "stage1_align_v5e1": ("projector/.*",),
    "astro_next_stage1": ("image_newline/.*",),
}


def test_what_the_model_lacks_is_fresh(name, run):
    assert run.init.fresh == FRESH.get(name, ())
    assert run.init.grid == (GRID if name == "astro_next_stage1" else None)
    assert (run.init.model is None) == name.startswith("stage1_align")


def test_the_resolved_recipe_is_the_golden_one(name, run):
    golden = GOLDEN / f"{name}.yaml"
    assert config.dump(run) == golden.read_text(), (
        f"{golden.name}: the recipe resolves to something else; if that is meant, write it anew "
        "with config.dump"
    )
    assert config.load(RunConfig, str(golden)) == run


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A small model, its two towers apart, and 300 records."""
    folder = tmp_path_factory.mktemp("stand_ins")
    model = tiny_llava.torch_model()
    tiny.write_hf(folder / "hf", model)
    tiny.write_parts(folder / "clip", folder / "llm", model)
    tiny_records.write(folder / "grey", 300)
    return folder


def test_a_dry_run_tells_steps_and_samples(name, published, stand_ins, tmp_path, capsys):
    argv = ["train", str(ROOT / "configs" / f"{name}.yaml"), "--dry-run"]
    argv += ["--out", str(tmp_path / "run"), "--data.0.records", str(stand_ins / "grey")]
    if name.startswith("stage1_align"):
        argv += ["--init.vision", str(stand_ins / "clip"), "--init.llm", str(stand_ins / "llm")]
    else:
        argv += ["--init.model", str(stand_ins / "hf")]
    if "next" in name:
        argv += ["--init.grid", "[[28, 56], [56, 28]]", "--init.fresh", "[image_newline/.*]"]
    if "lora" in published.rates:
        argv += ["--lora.rank", "8"]  # the stand-in has no map of 128
    assert main(argv) == 0
    said = capsys.readouterr().out
    steps, last = divmod(300, published.samples)
    assert f"steps: {steps + 1} steps of {published.samples} samples (the last: {last})" in said
    assert f"300 records x 1, template {published.template}, image {published.image}" in said
    frozen = re.search(r"frozen +- +[\d,]+ +[\d.]+ KiB +vision/\.\*", said)
    assert bool(frozen) == ("vision" not in published.rates)
    fresh = FRESH.get("astro_next_stage1" if "next" in name else name)
    fresh = ("adapters",) if "lora" in published.rates else fresh
    assert ("made anew from the seed 0: " + ", ".join(fresh or ()) in said) == bool(fresh)
    assert f"the batch of step 1: {published.samples} samples" in said
    learned = "↵»" if published.template == "plain" else "No.</s>»"
    assert learned in said
