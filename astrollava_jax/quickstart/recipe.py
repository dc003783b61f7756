"""The recipe of the quickstart: a small model's shape, and the three stages as files.

Sizes and rates were found by trying; the arms of spirals are the last thing that is learned, so a
shorter stage 0 loses those first. More small steps teach more of them than fewer large ones.
"""

import dataclasses
import json
from typing import Any

from astrollava_jax.quickstart.vocabulary import MAX_LENGTH, SPECIALS, words

IMAGE_SIZE = 64
"""Side of a picture, in pixels."""

PIXEL_MEAN, PIXEL_STD = 0.18, 0.18
"""Of the sky's pixels in [0, 1]. With CLIP's, for brighter pictures, the tower saw nearly the same
dark vector in every patch, and learned to count arms later."""

STAGE0_SEED, STAGE1_SEED, HELD_OUT_SEED = 100, 200, 300
"""Three skies: no picture of one stands in another."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is drawn, and how long each stage takes."""

    stage0_pictures: int = 24000
    train_pictures: int = 8000
    held_out_pictures: int = 400
    stage0_steps: int = 2600
    stage1_steps: int = 550
    stage2_steps: int = 760


STAGE0 = """\
# Stage 0: stand-ins for CLIP and Vicuna. A frozen random decoder cannot be aligned with anything,
# so everything trains here on captions of another sky; the projector is thrown away afterwards.
out: "{folder}/runs/stage0"
seed: 0
steps: {stage0_steps}
init: {{model: "{folder}/parts/initial", fresh: [".*"]}}  # a shape alone: all from the seed
data:
  - {{records: "{folder}/parts/sky", template: plain, image: pad}}
batch: {{samples: 32, length: 80, packing: true, max_images: 2}}
loss: tokens
optimizer:
  groups: [{{name: everything, params: ".*", peak_lr: 1.5e-3}}]
  betas: [0.9, 0.98]
  weight_decay: 0.01
  clip_norm: 1.0
  schedule: {{type: cosine, warmup_fraction: 0.05, final_fraction: 0.02}}
precision: {{compute: float32, trainable: float32, frozen: float32}}
remat: none
checkpoint: {{every_seconds: 120, keep: 2}}
workers: 0                       # pictures this small are decoded faster than sent
log: {{every_steps: 200}}
"""

STAGE1 = """\
# Stage 1: teach a fresh projector to speak the decoder's language. Nothing else moves.
out: "{folder}/runs/stage1"
seed: 1                          # another than stage 0: its projector must not come back
steps: {stage1_steps}
init: {{vision: "{folder}/parts/vision", llm: "{folder}/parts/llm", fresh: ["projector/.*"]}}
data:
  - {{records: "{folder}/data/train", template: plain, image: pad}}
batch: {{samples: 32, length: 80, packing: true, max_images: 2}}
loss: tokens
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 2.0e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  betas: [0.9, 0.98]
  clip_norm: 1.0
  schedule: {{type: cosine, warmup_fraction: 0.06, final_fraction: 0.02}}
precision: {{compute: float32, trainable: float32, frozen: float32}}
remat: none
checkpoint: {{every_seconds: 120, keep: 2}}
evaluate: {{records: "{folder}/data/heldout", every_steps: 200}}
workers: 0
log: {{every_steps: 100}}
"""

STAGE2 = """\
# Stage 2: the decoder and the projector learn to answer. Some captions stay in the mixture, so that
# what stage 1 taught is not forgotten.
out: "{folder}/runs/stage2"
seed: 2
steps: {stage2_steps}
init: {{model: "{folder}/runs/stage1"}}
data:
  - {{records: "{folder}/data/train", template: model, image: pad}}
  - {{records: "{folder}/data/train", template: plain, image: pad, weight: 0.25}}
batch: {{samples: 32, length: 160, packing: true, max_images: 3}}
loss: tokens
optimizer:
  groups:
    - {{name: projector, params: "projector/.*", peak_lr: 2.5e-3}}
    - {{name: llm, params: "llm/.*", peak_lr: 2.5e-3}}
  frozen: ["vision/.*"]
  betas: [0.9, 0.98]
  clip_norm: 1.0
  schedule: {{type: cosine, warmup_fraction: 0.06, final_fraction: 0.02}}
precision: {{compute: float32, trainable: float32, frozen: float32}}
remat: none
checkpoint: {{every_seconds: 120, keep: 2}}
evaluate: {{records: "{folder}/data/heldout", every_steps: 200}}
workers: 0
log: {{every_steps: 100}}
"""

STAGES = {"stage0": STAGE0, "stage1": STAGE1, "stage2": STAGE2}


def stage_files(folder: str, sizes: Sizes) -> dict[str, str]:
    """The file of each stage, by its name, for a quickstart in a folder."""
    quoted = json.dumps(folder, ensure_ascii=False)[1:-1]  # a path may hold what YAML reads
    facts = dataclasses.asdict(sizes)
    return {f"{name}.yaml": text.format(folder=quoted, **facts) for name, text in STAGES.items()}


def initial_config() -> dict[str, Any]:
    """The `config.json` of the small model, in transformers' words."""
    text = {
        "model_type": "llama",
        "vocab_size": len(words()),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": SPECIALS.index("<s>"),
        "eos_token_id": SPECIALS.index("</s>"),
        "pad_token_id": SPECIALS.index("<pad>"),
    }
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,  # the last is never read: select_layer is -2, as with CLIP
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
        "projection_dim": 128,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": SPECIALS.index("<image>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (IMAGE_SIZE // tower["patch_size"]) ** 2,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "text_config": text,
        "vision_config": tower,
    }


def image_processor() -> dict[str, Any]:
    """The `preprocessor_config.json` of the small model."""
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "do_convert_rgb": True,
    }
