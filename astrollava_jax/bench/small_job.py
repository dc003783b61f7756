"""A job of seconds: the smallest model of the simulated sky, for programs that disturb a run."""

import json
from typing import Any

from astrollava_jax import files
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.quickstart import recipe
from astrollava_jax.quickstart.examples import examples
from astrollava_jax.quickstart.vocabulary import tokenizer_files

PICTURES = 96
IMAGE_SIZE = 28

_RUN = """\
out: {out}
seed: 7
steps: {steps}
init: {{model: {folder}/initial, fresh: [".*"]}}
data: [{{records: {folder}/sky, template: plain}}]
batch: {{samples: 8, length: 64, rows_per_device: 1}}
{kind}
precision: {{compute: float32, frozen: float32}}
checkpoint: {{every_seconds: null, every_steps: {every_steps}, keep: 3}}
workers: {workers}
log: {{tensorboard: false, every_steps: 100}}
"""

_SCHEDULE = "schedule: {type: cosine, warmup_fraction: 0.1}"
KINDS = {
    "stage1": f"""\
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1.0e-2}}]
  frozen: ["vision/.*", "llm/.*"]
  {_SCHEDULE}""",
    "full": f"""\
optimizer:
  groups:
    - {{name: projector, params: "projector/.*", peak_lr: 1.0e-3}}
    - {{name: llm, params: "llm/.*", peak_lr: 1.0e-3}}
  frozen: ["vision/.*"]
  clip_norm: 1.0
  {_SCHEDULE}""",
    "lora": f"""\
lora: {{rank: 4, alpha: 8, dropout: 0.1, targets: ["llm/layers/.*_proj"]}}
optimizer:
  groups:
    - {{name: projector, params: "projector/.*", peak_lr: 1.0e-3}}
    - {{name: lora, params: "llm/.*/lora_[ab]", peak_lr: 2.0e-3}}
  frozen: ["vision/.*", "llm/(?!.*/lora_[ab]$).*"]
  {_SCHEDULE}""",
}
"""What trains: the projector; the projector and the decoder; the projector and adapters."""


def write(folder: files.Where, *, spare_words: int = 0) -> None:
    """The sky's records, and the shape of a model whose numbers come from the seed.

    Args:
        folder: for both.
        spare_words: of the model, beyond its tokenizer's, so that a mesh may divide them.
    """
    config = _config()
    config["text_config"]["vocab_size"] += spare_words
    initial = files.join(folder, "initial")
    files.write_json(files.join(initial, "config.json"), config)
    processor = json.loads(
        json.dumps(recipe.image_processor()).replace(str(recipe.IMAGE_SIZE), str(IMAGE_SIZE))
    )
    files.write_json(files.join(initial, "preprocessor_config.json"), processor)
    for name, content in tokenizer_files().items():
        files.write_bytes(files.join(initial, name), content)
    sky = files.join(folder, "sky")
    if not files.exists(sky):
        write_set(sky, examples(0, PICTURES, size=IMAGE_SIZE), name="sky", split="train")


def write_run(
    folder: files.Where, kind: str, out: files.Where, *,
    steps: int, every_steps: int, workers: int = 0,
) -> str:  # fmt: skip
    """The file of a run beside what `write` left; returns its path."""
    path = f"{out}.yaml"
    facts = {"out": out, "steps": steps, "folder": folder, "every_steps": every_steps}
    files.write_text(path, _RUN.format(kind=KINDS[kind], workers=workers, **facts))
    return path


def _config() -> dict[str, Any]:
    """The quickstart's model, narrower."""
    config = recipe.initial_config()
    config["text_config"] |= {"hidden_size": 32, "intermediate_size": 64}
    config["vision_config"] |= {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "image_size": IMAGE_SIZE, "patch_size": 14, "projection_dim": 32,
    }  # fmt: skip
    return config | {"image_seq_length": (IMAGE_SIZE // 14) ** 2}
