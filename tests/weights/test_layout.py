"""Rows, read both ways, and the names that they stand for."""

import dataclasses
import math

import numpy as np
import pytest
from published import HF_PROJECTOR, PREFIX, llava_1_5, published_names

from astrollava_jax.models.clip import ClipConfig
from astrollava_jax.models.llama import LlamaConfig
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import IdentityConfig, LinearConfig, MlpConfig
from astrollava_jax.weights.binding import unmapped
from astrollava_jax.weights.layout import Row, Sentence, expand, whole
from astrollava_jax.weights.llava import DECODER, HF, ORIGINAL, TOWER, with_vocabulary

SIZES = {"d": 6, "n": 4, "k": 2, "h": 3, "f": 5, "e": 2, "c": 3, "p": 2, "q": 2}


def test_a_sentence_is_a_permutation_read_both_ways():
    sentence = Sentence.parse("(n h) d -> d n h")
    theirs = np.arange(72).reshape(12, 6)
    assert sentence.their_shape(SIZES) == (12, 6)
    assert sentence.our_shape(SIZES) == (6, 4, 3)
    ours = sentence.to_ours(theirs, SIZES)
    assert ours[5, 2, 1] == theirs[2 * 3 + 1, 5]
    assert np.array_equal(sentence.to_theirs(ours, SIZES), theirs)


def test_a_patch_kernel_goes_from_oihw_to_hwio():
    sentence = Sentence.parse("e c p q -> p q c e")
    theirs = np.arange(24).reshape(2, 3, 2, 2)
    assert np.array_equal(sentence.to_ours(theirs, SIZES), theirs.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("text", "cut", "rows_read"),
    [
        ("(n h) d -> d n h", np.s_[1:3, 2:4, 0:3], (6, 12)),
        ("(n h) d -> d n h", np.s_[0:6, 1:2, 1:2], (3, 6)),
        ("d (n h) -> n h d", np.s_[1:3, 0:3, 2:5], (2, 5)),
        ("e -> 1 e", np.s_[0:1, 1:2], (1, 2)),
        ("f d -> d f", np.s_[4:6, 0:5], (0, 5)),
    ],
)
def test_a_cut_of_ours_reads_only_their_rows(text, cut, rows_read):
    sentence = Sentence.parse(text)
    shape = sentence.their_shape(SIZES)
    theirs = np.arange(math.prod(shape)).reshape(shape)
    index, sizes, left = sentence.narrow(cut, SIZES)
    assert (index[0].start, index[0].stop) == rows_read
    found = sentence.to_ours(theirs[index], sizes)[left]
    assert np.array_equal(found, sentence.to_ours(theirs, SIZES)[cut])


def test_rows_may_share_a_fused_tensor():
    rows = [
        Row("llm/q", "layers.{}.qkv.weight[0:n*h]", "(n h) d -> d n h"),
        Row("llm/v", "layers.{}.qkv.weight[n*h+k*h:n*h+2*k*h]", "(k h) d -> d k h"),
        Row("llm/k", "layers.{}.qkv.weight[n*h:n*h+k*h]", "(k h) d -> d k h"),
    ]
    shapes = {"llm/q": (7, 6, 4, 3), "llm/k": (7, 6, 2, 3), "llm/v": (7, 6, 2, 3)}
    found = expand(rows, shapes, {"llm": SIZES})
    assert list(found) == [f"layers.{i}.qkv.weight" for i in range(7)]
    fused = found["layers.6.qkv.weight"]
    assert fused.shape == (24, 6)
    assert [piece.address for piece in fused.pieces] == ["llm/q", "llm/k", "llm/v"]
    ours = {address: np.random.default_rng(0).normal(size=s) for address, s in shapes.items()}
    theirs = np.concatenate([p.to_theirs(ours[p.address][p.index]) for p in fused.pieces])
    assert np.array_equal(theirs[12:18], ours["llm/k"][6].reshape(6, 6).T)


def test_all_faults_of_a_table_come_at_once():
    rows = [
        Row("llm/a", "a", "d f -> f d"),
        Row("llm/a", "again", "d f -> f d"),
        Row("llm/b", "b", "f -> f"),
        Row("llm/c", "c", "f -> f"),
        Row("llm/half", "half[f:2*f]", "f -> f"),
    ]
    shapes = {"llm/a": (5, 6), "llm/b": (6,), "llm/half": (5,), "llm/idle": (1,)}
    with pytest.raises(ValueError) as error:
        expand(rows, shapes, {"llm": SIZES})
    message = str(error.value)
    assert "llm/a: has 2 rows" in message
    assert "llm/b: the model has [6], 'f -> f' makes [5]" in message
    assert "llm/c: the model has no such parameter" in message
    assert "llm/idle: has 0 rows" in message
    assert "half: expected rows 0:5 for llm/half, found 5:10" in message


def test_an_index_is_completed():
    cuts = [slice(0, 3), slice(2, 5), slice(0, 2)]
    assert whole((slice(None, 3), slice(2, None)), (4, 5, 2)) == tuple(cuts)
    assert whole(None, (4,)) == (slice(0, 4),)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_map_covers_every_name_of_hf(size):
    config = llava_1_5(size, 32064)
    written = {name: foreign.shape for name, foreign in HF.foreign(config).items()}
    expected = published_names(
        size, 32064, "language_model.model.", "language_model.lm_head", PREFIX, HF_PROJECTOR
    )
    assert written == expected
    if size == "7b":
        assert len(written) == 686
        assert sum(map(math.prod, written.values())) == 7_063_427_072
    later = published_names(
        size, 32064, "model.language_model.", "lm_head", f"model.{PREFIX}",
        [f"model.{name}" for name in HF_PROJECTOR],
    )  # fmt: skip
    for tower in (f"model.{PREFIX}", "model.vision_tower.", "vision_tower."):
        names = {name.replace(f"model.{PREFIX}", tower): shape for name, shape in later.items()}
        assert {n: f.shape for n, f in HF.foreign(config, names).items()} == names


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_map_covers_every_name_of_the_original(size):
    config = with_vocabulary(llava_1_5(size, 32064), 32000)
    start = "model.vision_tower.vision_tower.vision_model."
    projector = ["model.mm_projector.0", "model.mm_projector.2"]
    expected = published_names(size, 32000, "model.", "lm_head", start, projector)
    assert {n: f.shape for n, f in ORIGINAL.foreign(config).items()} == expected
    if size == "7b":
        assert sum(map(math.prod, expected.values())) == 7_062_902_784


def test_a_model_with_a_grid_has_one_vector_more():
    without = llava_1_5("7b", 32064)
    config = dataclasses.replace(without, grid=((336, 672),))

    def added(layout, names=None):
        found = layout.foreign(config, names)
        new = found.keys() - layout.foreign(without, names).keys()
        return {name: (found[name].shape, found[name].pieces[0].address) for name in new}

    vector = ((4096,), "image_newline/embedding")
    assert added(HF) == {"image_newline": vector}
    assert added(HF, ["model.image_newline"]) == {"model.image_newline": vector}
    assert added(ORIGINAL) == {"model.image_newline": vector}
    assert added(DECODER) == added(TOWER) == {}
    (piece,) = HF.foreign(config)["image_newline"].pieces
    assert piece.to_theirs(np.ones((1, 4096))).shape == (4096,)


def test_the_map_covers_the_bare_parts():
    config = llava_1_5("7b", 32000)
    decoder = DECODER.foreign(config)
    assert sum(math.prod(f.shape) for f in decoder.values()) == 6_738_415_616
    tower = TOWER.foreign(config)
    assert sum(math.prod(f.shape) for f in tower.values()) == 303_507_456
    rest = ["vision_model.embeddings.position_ids", "text_model.final_layer_norm.bias", "strange"]
    assert unmapped([*tower, *rest, "logit_scale"], tower, TOWER.ignored) == ["strange"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (LinearConfig(), ["model.mm_projector.weight"]),
        (MlpConfig(depth=1), ["model.mm_projector.0.weight"]),
        (MlpConfig(depth=3), [f"model.mm_projector.{i}.weight" for i in (0, 2, 4)]),
        (IdentityConfig(), []),
    ],
)
def test_the_original_names_every_projector(kind, names):
    config = LlavaConfig(
        vision=ClipConfig(
            image_size=4, patch_size=2, embed_dim=4, mlp_dim=4, num_layers=2, num_heads=2
        ),
        projector=kind,
        llm=LlamaConfig(
            vocab_size=8, embed_dim=4, mlp_dim=4, num_layers=1, num_heads=2, num_kv_heads=1,
            head_dim=2,
        ),
    )  # fmt: skip
    found = [n for n in ORIGINAL.foreign(config) if "projector" in n and n.endswith("weight")]
    assert found == names
    with pytest.raises(ValueError, match="projectors of 2 linear maps"):
        HF.foreign(config)
