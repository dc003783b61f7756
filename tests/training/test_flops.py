"""Useful FLOPs beside arithmetic by hand, for the sizes of LLaVA-1.5-7B."""

import dataclasses

import jax
from flax import nnx

from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.lora import LoraConfig, attach
from astrollava_jax.models.projector import MlpConfig
from astrollava_jax.models.siglip import SiglipConfig
from astrollava_jax.params import matches, split
from astrollava_jax.training.flops import Work, sizes_of, useful_flops

CONFIG = LlavaConfig(
    vision=ClipConfig(
        image_size=336, patch_size=14, embed_dim=1024, mlp_dim=4096, num_layers=24, num_heads=16
    ),
    projector=MlpConfig(depth=2),
    llm=LlamaConfig(
        vocab_size=32064, embed_dim=4096, mlp_dim=11008, num_layers=32, num_heads=32,
        num_kv_heads=32, head_dim=128, norm_eps=1e-5, tie_embeddings=False,
    ),
)  # fmt: skip

DECODER = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
"""Weights: of 32 layers four square maps of attention, three of the MLP."""
HEAD = 4096 * 32064
TOWER = 23 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
"""The last of 24 blocks is not computed."""
PATCHES = 14 * 14 * 3 * 1024
FIRST, SECOND = 1024 * 4096, 4096 * 4096
"""Maps of the projector."""

ROW = Work(tokens=1400, learned=100, attended=1400 * 1401 // 2, images=2)
TOWER_FORWARD = 2 * (2 * 577 * TOWER + 2 * 576 * PATCHES) + 4 * 23 * 1024 * 2 * 577 * 577
"""Of two pictures: 24 x 24 patches and the class token, which all see each other."""
SCORES = 4 * 32 * 4096 * (1400 * 1401 // 2)
"""Forward: query by key and weight by value, 2 each, in 32 layers of width 4096."""


def counted(trained: str, work: Work = ROW, config: LlavaConfig = CONFIG, lora=None) -> float:
    def build():
        model = config.build(nnx.Rngs(0))
        return model if lora is None else attach(model, lora, jax.random.key(0))

    sizes = sizes_of(split(nnx.eval_shape(build))[1])
    return useful_flops(config, sizes, {name: matches(trained, name) for name in sizes}, work)


def test_stage_1_takes_no_gradients_of_the_weights_of_the_decoder():
    projector = 2 * 576 * (4 * FIRST + 6 * SECOND)  # nothing trains below the first map
    decoder = 4 * 1400 * DECODER + 4 * 100 * HEAD + 3 * SCORES
    assert counted("projector/.*") == TOWER_FORWARD + projector + decoder


def test_stage_2_trains_all_but_the_tower():
    projector = 2 * 576 * (4 * FIRST + 6 * SECOND)
    decoder = 6 * 1400 * DECODER + 6 * 100 * HEAD + 3 * SCORES
    assert counted("(projector|llm)/.*") == TOWER_FORWARD + projector + decoder


def test_a_tower_that_trains_has_a_backward_pass_down_to_its_patches():
    blocks = 6 * 2 * 577 * TOWER + 3 * 4 * 23 * 1024 * 2 * 577 * 577
    patches = 4 * 2 * 576 * PATCHES  # of pixels nobody wants a gradient
    rest = 2 * 576 * 6 * (FIRST + SECOND) + 6 * 1400 * DECODER + 6 * 100 * HEAD + 3 * SCORES
    assert counted(".*") == blocks + patches + rest


def test_adapters_train_beside_frozen_maps():
    lora = LoraConfig(rank=8, alpha=16.0, targets=("llm/layers/attn/[qv]_proj",))
    adapters = 32 * 2 * 8 * (4096 + 4096)
    projector = 2 * 576 * (4 * FIRST + 6 * SECOND)
    decoder = 1400 * (4 * DECODER + 6 * adapters) + 4 * 100 * HEAD + 3 * SCORES
    trained = "projector/.*|llm/.*/lora_[ab]"
    assert counted(trained, lora=lora) == TOWER_FORWARD + projector + decoder
    alone = TOWER_FORWARD + 2 * 2 * 576 * (FIRST + SECOND) + decoder
    assert counted("llm/.*/lora_[ab]", lora=lora) == alone


def test_a_tied_head_multiplies_by_the_table_of_the_words():
    tied = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, tie_embeddings=True))
    assert counted("(projector|llm)/.*", config=tied) == counted("(projector|llm)/.*")
    assert counted("projector/.*", config=tied) == counted("projector/.*")


def test_below_all_that_trains_there_is_no_backward_pass():
    forward = TOWER_FORWARD + 2 * 2 * 576 * (FIRST + SECOND) + 2 * 1400 * DECODER + SCORES
    assert counted("nothing") == forward + 2 * 100 * HEAD
    assert counted("llm/lm_head/.*") == forward + 4 * 100 * HEAD
    assert counted("llm/norm/.*|llm/lm_head/.*") == forward + 6 * 100 * HEAD
    backward = 2 * (1400 * DECODER + 100 * HEAD + SCORES) + 2 * 2 * 576 * SECOND
    assert counted("projector/layers_1/.*") == forward + 2 * 100 * HEAD + backward


def test_samples_of_a_row_see_themselves_alone():
    """700 + 400 + 300 positions in place of 1400: fewer pairs, all else the same."""
    pairs = 700 * 701 // 2 + 400 * 401 // 2 + 300 * 301 // 2
    several = dataclasses.replace(ROW, attended=pairs)
    fewer = 3 * 4 * 32 * 4096 * (1400 * 1401 // 2 - pairs)
    assert counted("projector/.*", ROW) - counted("projector/.*", several) == fewer


def test_what_stands_behind_the_blocks_that_are_read_is_not_counted():
    tower = SiglipConfig(
        image_size=28, patch_size=14, embed_dim=32, mlp_dim=48, num_layers=3, num_heads=4
    )
    plain = dataclasses.replace(CONFIG, vision=tower)
    pooling = dataclasses.replace(CONFIG, vision=dataclasses.replace(tower, pooling=True))
    assert counted("projector/.*", config=pooling) == counted("projector/.*", config=plain)
    last = dataclasses.replace(plain, select_layer=-1)
    block = 2 * 2 * 4 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 32 * 2 * 4 * 4
    assert counted("projector/.*", config=last) - counted("projector/.*", config=plain) == block
