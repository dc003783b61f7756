"""Answers and logits of a tiny random LLaVA, against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import tokenizers
import torch
from PIL import Image
from tiny_llava import assert_close
from transformers import LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.inference import generate
from astrollava_jax.inference.model import Model
from astrollava_jax.models.llava import logical_axes
from astrollava_jax.params import split
from astrollava_jax.sharding import MeshConfig, named

WORDS = "USER ASSISTANT : ? what is this a star galaxy red how many and that"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ turn['role'] | upper }} : {{ turn['content'] }} "
    "{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


@pytest.fixture(scope="module")
def theirs():
    return tiny_llava.torch_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of 61 words and BOS; `<image>` becomes 61."""
    vocabulary = ["<unk>", "<s>", "</s>", *WORDS.split()]
    vocabulary += [f"w{number}" for number in range(61 - len(vocabulary))]
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_pad=True
        ),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def model(theirs, folder):
    config = tiny_llava.our_config()
    numbers = tiny_llava.by_address(dict(theirs.named_parameters()))
    return Model(
        name="tiny",
        config=config,
        graphdef=split(config.abstract())[0],
        params={address: jnp.asarray(value) for address, value in numbers.items()},
        tokenizer=Tokenizer.from_folder(folder),
        template="model",
        image_mode="pad",
        dtype="float32",
    )


def picture(seed: int, width: int = 40, height: int = 31) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


PICTURES = [[picture(0)], [picture(1, 20, 60), picture(2)], [], [picture(3)]]
PROMPTS = [
    "USER : <image> what is this ? ASSISTANT :",
    "USER : <image> and <image> how many ? ASSISTANT : a red star </s> USER : that ?",
    "USER : what is a galaxy ? ASSISTANT :",
    "<image>",
]


def inputs(processor, text, pictures):
    """What stock transformers gives its model for one prompt."""
    made = processor(text=text, images=pictures or None, return_tensors="pt")
    made.pop("token_type_ids", None)
    return made


def their_logits(theirs, processor, text, pictures) -> np.ndarray:
    with torch.no_grad():
        return theirs(**inputs(processor, text, pictures)).logits[0].numpy()


def their_answer(theirs, processor, text, pictures, stops, max_new_tokens) -> list[int]:
    """The ids of the greedy answer, without the token that ended it."""
    made = inputs(processor, text, pictures)
    with torch.no_grad():
        whole = theirs.generate(
            **made, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops),
            pad_token_id=62,
        )[0].tolist()  # fmt: skip
    answer = whole[made["input_ids"].shape[1] :]
    return answer[:-1] if answer and answer[-1] in stops else answer


def test_logits_of_a_batch_equal_those_of_transformers(model, theirs, processor):
    ours = model.logits(PICTURES, PROMPTS)
    expected = [their_logits(theirs, processor, *pair) for pair in zip(PROMPTS, PICTURES)]
    assert ours.dtype == np.float32
    assert ours.shape == (4, max(map(len, expected)), tiny_llava.VOCABULARY)
    for row, want in zip(ours, expected):
        assert_close(row[: len(want)], want, "logits")
        assert not row[len(want) :].any()


def test_text_alone_needs_no_images(model, theirs, processor):
    (ours,) = model.logits(None, ["what is this ?"])
    assert_close(ours, their_logits(theirs, processor, "what is this ?", []), "logits")


def test_nothing_asked_nothing_answered(model):
    assert model.logits(None, []).shape == (0, 0, tiny_llava.VOCABULARY)
    assert model.generate(None, []) == []


def answers(model, stops, max_new_tokens, which=(0, 1, 2, 3)):
    """The ids of our answers to some of the prompts, taken literally."""
    made = [model._literally(PROMPTS[number], PICTURES[number]) for number in which]
    return generate.generate(
        model.graphdef, model.params, made, model.config.image_facts,
        stop_ids=stops, max_new_tokens=max_new_tokens, vocab_size=64, dtype="float32",
    )  # fmt: skip


# A random model never ends by itself; the stops are words that it says.
@pytest.mark.parametrize(("ends", "max_new_tokens"), [(False, 12), (True, 12), (False, 1)])
def test_answers_equal_greedy_ones_of_transformers(model, theirs, processor, ends, max_new_tokens):
    free = answers(model, (), max_new_tokens)
    stops = (free[0][-1], free[1][0]) if ends else ()
    expected = [
        their_answer(theirs, processor, *pair, stops, max_new_tokens)
        for pair in zip(PROMPTS, PICTURES)
    ]
    found = answers(model, stops, max_new_tokens)
    assert found == expected
    if ends:
        assert 0 < len(found[0]) < max_new_tokens and found[1] == []


def test_an_answer_does_not_depend_on_its_company(model, monkeypatch):
    together = answers(model, (), 12)
    monkeypatch.setattr(generate, "MAX_POSITIONS", 128)  # one or two rows at once
    shuffled = [3, 0, 3, 2, 1, 0, 0]
    assert answers(model, (), 12, shuffled) == [together[number] for number in shuffled]


def test_a_bare_question_goes_through_the_template(model, theirs, processor):
    question, image = "what is this ?", picture(5)
    (answer,) = model.generate([image], [question], max_new_tokens=12)
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"<image>\n{question}"}],
        tokenize=False,
        add_generation_prompt=True,
    ).removeprefix("<s>")  # the processor adds it again
    expected = their_answer(theirs, processor, prompt, [image], (2,), 12)
    assert len(expected) == 12
    assert answer == processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_marker_says_where_the_picture_stands(model):
    marked = model.generate([picture(5)], ["<image>\nwhat is this ?"], max_new_tokens=6)
    assert marked == model.generate([[picture(5)]], ["what is this ?"], max_new_tokens=6)


def test_every_form_of_a_picture_is_the_same_picture(model, tmp_path):
    image = picture(6)
    image.save(tmp_path / "sky.png")
    forms = [
        image,
        np.asarray(image),
        jnp.asarray(np.asarray(image)),
        tmp_path / "sky.png",
        str(tmp_path / "sky.png"),
        (tmp_path / "sky.png").read_bytes(),
    ]
    ours = model.logits(forms, ["<image> a"] * len(forms))
    assert (ours == ours[0]).all()


def test_pictures_of_any_resolution_are_seen_as_transformers_sees_them(model, folder):
    theirs, config = tiny_llava.torch_next(), tiny_llava.next_config()
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=theirs.config.image_grid_pinpoints,
        ),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder), patch_size=14,
        vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1,
    )  # fmt: skip
    numbers = tiny_llava.by_address(dict(theirs.named_parameters()))
    ours = dataclasses.replace(
        model, config=config, graphdef=split(config.abstract())[0], image_mode="anyres",
        params={address: jnp.asarray(value) for address, value in numbers.items()},
    )  # fmt: skip
    pictures = [[picture(0, 90, 60)], [picture(1, 90, 62)], [picture(2, 30, 80), picture(3)]]
    texts = [PROMPTS[0], PROMPTS[0], "USER : <image> and <image> how many ? ASSISTANT :"]
    made = [ours._literally(*pair) for pair in zip(texts, pictures)]
    assert [len(prompt.images) for prompt in made] == [5, 5, 4 + 5]
    with torch.no_grad():
        expected = [
            theirs(**inputs(processor, text, shown)).logits[0].numpy()
            for text, shown in zip(texts, pictures)
        ]
    for row, want in zip(ours.logits(pictures, texts), expected):
        assert_close(row[: len(want)], want, "logits")
    stops = (2,)
    said = ours.generate([pictures[0]], ["what is this ?"], max_new_tokens=6)
    asked = "USER : <image>\nwhat is this ? ASSISTANT :"
    ids = their_answer(theirs, processor, asked, pictures[0], stops, 6)
    assert said == [processor.tokenizer.decode(ids, skip_special_tokens=True)] and len(ids) == 6


def test_four_devices_answer_as_one(model):
    mesh = MeshConfig(data=1, fsdp=2, tensor=2).build(jax.devices()[:4])
    axes = logical_axes(model.config.abstract())
    params = {a: jax.device_put(v, named(axes[a], mesh)) for a, v in model.params.items()}
    spread = dataclasses.replace(model, mesh=mesh, params=params)
    literal = [PICTURES[0]], [PROMPTS[0]]
    assert_close(spread.logits(*literal), model.logits(*literal), "logits", 1e-5)
    question = [picture(7)], ["what is this ?"]
    assert spread.generate(*question, max_new_tokens=8) == model.generate(
        *question, max_new_tokens=8
    )


def test_bfloat16_is_near_and_scores_are_float32(model):
    half = dataclasses.replace(model, dtype="bfloat16")
    near = half.logits([picture(0)], ["<image> a star"])
    assert near.dtype == np.float32
    assert_close(near, model.logits([picture(0)], ["<image> a star"]), "logits", 0.1)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        ([picture(0)], ["a", "b"], "found 1 for 2 prompt"),
        ([picture(0)], ["a star"], "prompt 0: .* found 0 marker.* and 1 picture"),
        (None, ["a", "<image> a"], "prompt 1: .* found 1 marker.* and 0 picture"),
        ([np.zeros((3, 4, 5))], ["<image>"], r"prompt 0: .*found float64 \[3, 4, 5\]"),
        ([b"no picture"], ["<image>"], "prompt 0: cannot decode"),
        (None, "a star", "found one string"),
    ],
)
def test_what_does_not_fit_is_said(model, images, prompts, message):
    with pytest.raises(ValueError, match=message):
        model.logits(images, prompts)


def test_a_prompt_longer_than_the_model_s_positions_is_refused_with_both_numbers(model):
    question, image = "what is this ?", picture(5)
    length = len(model._question(question, [image]).tokens)
    enough = dataclasses.replace(model, positions=length)
    assert enough.generate([image], [question], max_new_tokens=1)
    short = dataclasses.replace(model, positions=length - 1)
    told = (
        rf"prompt 1: takes {length} positions with its 1 picture.*but the model has {length - 1}:"
    )
    with pytest.raises(ValueError, match=told):
        short.generate([None, image], ["a star", question])


def test_few_lengths_hold_everything():
    lengths = [generate.padded_length(n) for n in range(1, 3000)]
    assert all(length >= n for n, length in enumerate(lengths, 1))
    assert sorted(set(lengths))[:12] == [32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert all(length <= max(n + 31, 1.25 * n) for n, length in enumerate(lengths, 1))
