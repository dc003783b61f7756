"""Two stages on sixty pictures of the simulated sky: files on the disk, as a user has them."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import tiny_directories as tiny
import torch
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint import v1 as ocp
from tiny_llava import spread
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from astrollava_jax import config, files
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.quickstart import examples, vocabulary
from astrollava_jax.run.config import RunConfig
from astrollava_jax.sharding import MeshConfig
from astrollava_jax.training.metrics import read_log

SIZE, ROWS, STEPS = 28, 104, 8
"""Side of a picture, rows of the word table (103 words and one to spare), steps of a stage."""

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "OPENAI_API_KEY")

RUN = """\
out: {out}
seed: 3
steps: 8
init: {init}
data: [{{records: {records}/train, template: {template}}}]
batch: {{samples: {samples}, length: 96}}
optimizer: {optimizer}
precision: {{compute: float32, frozen: bfloat16}}
checkpoint: {{every_seconds: null, every_steps: 4}}
evaluate: {{records: {records}/heldout, every_steps: 6}}
workers: 0
log: {{tensorboard: false}}
"""

OPTIMIZER = {
    1: """
  groups: [{name: projector, params: "projector/.*", peak_lr: 1.0e-2}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {type: cosine, warmup_fraction: 0.1}""",
    2: """
  groups:
    - {name: projector, params: "projector/.*", peak_lr: 1.0e-3}
    - {name: llm, params: "llm/.*", peak_lr: 2.0e-3}
  frozen: ["vision/.*"]
  weight_decay: 0.1
  clip_norm: 1.0
  schedule: {type: cosine, warmup_fraction: 0.1}""",
}


def torch_model() -> LlavaForConditionalGeneration:
    """Three tower layers, two decoder layers, grouped queries; eight divides every width."""
    torch.manual_seed(0)
    image_id = vocabulary.words().index("<image>")
    shape = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=SIZE, patch_size=14, projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=ROWS, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        ),
        image_token_index=image_id, tie_word_embeddings=False, image_seq_length=4,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return spread(LlavaForConditionalGeneration(shape)).eval()


def write_model(folder: Path) -> None:
    """A directory in float16 with the names of transformers 4, and the sky's own tokenizer."""
    model = torch_model()
    model.config.dtype = torch.float16
    model.config.save_pretrained(folder)
    tensors = tiny.renamed(tiny.tensors_of(model, torch.float16), tiny.TO_4X)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in vocabulary.tokenizer_files().items():
        (folder / name).write_bytes(content)
    pixels: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "do_resize": True,
        "crop_size": {"height": SIZE, "width": SIZE}, "size": {"shortest_edge": SIZE},
        "resample": 3, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    processor = {
        "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 14,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor))


def write_records(folder: Path) -> None:
    """Sixty pictures to train on, and twelve of the same sky that are held out."""
    for split, start, count in (("train", 0, 60), ("heldout", 60, 12)):
        sky = examples.examples(0, count, start=start, size=SIZE)
        write_set(files.join(folder, split), sky, name="sky", split=split)


def fresh_projector(model: Path) -> str:
    """Where stage 1 starts."""
    return f'{{model: {model}, fresh: ["projector/.*"]}}'


def model_at(folder: Path) -> str:
    """Where stage 2 starts."""
    return f"{{model: {folder}}}"


def run_file(folder: Path, stage: int, init: str, out: Path) -> str:
    """The YAML file of a stage, below the folder that holds the records."""
    words = RUN.format(
        out=out,
        init=init,
        records=folder,
        template={1: "plain", 2: "model"}[stage],
        samples={1: 24, 2: 12}[stage],
        optimizer=OPTIMIZER[stage],
    )
    path = folder / f"{out.name}.yaml"
    path.write_text(words)
    return str(path)


def read_run(path: str, **overrides: Any) -> RunConfig:
    """A run's file, with keys replaced: `batch__rows_per_device=1`."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return config.load(RunConfig, path, dotted)


def on_devices(monkeypatch, count: int) -> None:
    """Makes every mesh of the test of the first `count` devices, unless it names its own."""
    layout, few = MeshConfig.layout, jax.devices()[:count]

    def on_few(mesh: MeshConfig, devices: Any = None, needs: Any = None) -> Any:
        return layout(mesh, devices or few, needs)

    monkeypatch.setattr(MeshConfig, "layout", on_few)


def curve(out: Any) -> list[tuple[float, ...]]:
    """What a run directory says of its steps: loss, norm and rate, with all their digits."""
    return [
        tuple(facts[key] for key in ("loss", "grad_norm", "lr"))
        for facts in read_log(files.join(out, "log.jsonl"))
    ]


def held_out(out: Any) -> dict[int, float]:
    """The held-out losses of a run directory, by step."""
    log = read_log(files.join(out, "log.jsonl"))
    return {facts["step"]: facts["held_out_loss"] for facts in log if "held_out_loss" in facts}


def arrays(out: Path, step: int) -> dict[str, np.ndarray]:
    """What a step changes, as it was after one: read from its checkpoint with Orbax alone."""
    path = out / "checkpoints" / str(step)
    held = ocp.checkpointables_metadata(path).metadata
    wanted = {name: held[name] for name in ("trainable", "optimizer", "history")}
    items = ocp.load_checkpointables(
        path, jax.tree.map(lambda array: np.empty(array.shape, array.dtype), wanted)
    )
    return by_name(items)


def by_name(items: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree, each by the keys that lead to it."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}


@contextlib.contextmanager
def quickly(compiled: str) -> Iterator[None]:
    """Compiles once, and in half the time; what is computed is little."""
    new = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": compiled,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    old = {name: jax.config.values[name] for name in new}
    try:
        _set(new)
        yield
    finally:
        _set(old)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks for its folder once
