"""The model's own chat template against transformers, and our rows as templates of transformers."""

import json

import llava_words
import pytest
from dialogues import messages_of, processor_of, turns_of
from transformers import AutoTokenizer

from astrollava_jax.data import chat
from astrollava_jax.data.chat_export import for_pictures, jinja_text
from astrollava_jax.data.tokenizer import Tokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou look at the sky.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' }}
{%- generation %}{{ message['content'] | trim }}{% endgeneration %}
{{- '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
LLAMA_2 = """\
{% for message in messages %}{% if message.role == 'user' %}
{{- bos_token + '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"""
FORGETFUL = """\
{% for message in messages %}{% if loop.last or message.role == 'user' %}
{{- message.role + ': ' + message.content + '\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
ENDS_ONCE = """\
{% for message in messages %}{{ message.role + ': ' + message.content }}
{%- if loop.last and message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
PARTS = """\
{% for message in messages %}{{ message.role | upper + ': ' }}
{%- for part in message.content | selectattr('type', 'equalto', 'image') %}
{{- '<image>\n' }}
{%- endfor %}
{%- for part in message.content | selectattr('type', 'equalto', 'text') %}
{{- part.text + ' ' }}
{%- endfor %}
{%- endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
TEXTS = ["What is this? ", "A ring.", "Sure?\n", "Yes, \U0001f30c."]
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>")
SPECIALS += ("<|start_header_id|>", "<|end_header_id|>")


@pytest.fixture
def model(tmp_path):
    """Makes a tokenizer with a chat template; and the folder that transformers reads."""

    def make(template, legacy=True, eos="</s>", **flags):
        (tmp_path / "tokenizer.model").write_bytes(llava_words.small_model())
        added = {
            str(430 + number): {"content": text, **flags} for number, text in enumerate(SPECIALS)
        }
        config = {"legacy": legacy, "added_tokens_decoder": added, "eos_token": eos}
        if template:
            config["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.from_folder(tmp_path)
        for name, content in tokenizer.files().items():
            (tmp_path / name).write_bytes(content)
        return tokenizer, tmp_path

    return make


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_transformers(model, template, legacy):
    tokenizer, folder = model(template, legacy)
    theirs = AutoTokenizer.from_pretrained(folder)

    def expected(texts, **options):
        text = theirs.apply_chat_template(messages_of(texts), tokenize=False, **options)
        # As processors do: BOS is added where the template writes none.
        return theirs(text, add_special_tokens=not text.startswith("<s>")).input_ids

    rendered = chat.render("m57", turns_of(TEXTS), "", "model", tokenizer, 0)
    assert rendered.tokens.tolist() == expected(TEXTS)
    asked = chat.prompt(turns_of(TEXTS[:3]), "model", tokenizer, 0)
    assert asked == expected(TEXTS[:3], add_generation_prompt=True)
    assert rendered.tokens.tolist()[: len(asked)] == asked


@pytest.mark.parametrize(("template", "literal"), [(CHATML, "<|im_end|>"), (LLAMA_2, "</s>")])
def test_learned_are_the_answers_and_what_ends_them(model, template, literal):
    tokenizer, _ = model(template)
    end = tokenizer.special_id(literal)
    texts = ["What is </s>?", "A <|im_end|> ring.", "Sure?", "Yes <image>"]
    rendered = chat.render("m57", turns_of(texts), "", "model", tokenizer, 0)
    learned = rendered.tokens[rendered.learned].tolist()
    assert (learned.count(end), learned[-1]) == (2, end)
    assert tokenizer.decode(learned[: learned.index(end)]).strip() == texts[1]
    assert tokenizer.decode(learned[learned.index(end) + 1 :]).strip() == texts[3]
    assert chat.stop_ids("model", tokenizer) == tuple(sorted({end, tokenizer.eos_id}))


def test_space_that_a_token_swallows_makes_no_token_of_a_text(model):
    tokenizer, folder = model(CHATML, lstrip=True, rstrip=True)
    turns = turns_of(["Is  <|im_end|>  a word?", "Yes."])
    ids = chat.render("m57", turns, "", "model", tokenizer, 0).tokens.tolist()
    assert ids.count(tokenizer.special_id("<|im_end|>")) == 3
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("a  <|im_end|>\n\nb").input_ids == theirs("a<|im_end|>b").input_ids
    assert tokenizer.encode_prompt("a  <|im_end|>\n\nb") == theirs("a<|im_end|>b").input_ids


def test_images_stand_before_the_text(model):
    tokenizer, _ = model(CHATML)
    turns = turns_of(["Compare <image> and <image>", "Alike."])
    ids = chat.prompt(turns[:1], "model", tokenizer, 2)
    start, image = tokenizer.special_id("<|im_start|>"), tokenizer.image_id
    line = tokenizer.encode("\n")[0]
    text = tokenizer.encode("\nCompare  and")[0]
    place = ids.index(image)
    assert ids[place : place + 1 + len(line) + 1] == [image, *line, image]
    assert ids[place + 2 + len(line) :][: len(text)] == text
    assert ids.count(start) == 3


def test_a_template_for_lists_of_parts(model):
    tokenizer, _ = model(PARTS)
    turns = turns_of(["<image>\nWhat is this?", "A ring."])
    rendered = chat.render("m57", turns, "", "model", tokenizer, 1)
    said = tokenizer.decode(rendered.tokens.tolist())
    assert said == "USER:  \nWhat is this? ASSISTANT: A ring. "
    assert tokenizer.decode(rendered.tokens[rendered.learned].tolist()) == "A ring. "


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "template 'model': .* has no chat template"),
        (FORGETFUL, "template 'model': .* rewrites earlier turns .*of 2 and of 3 turns"),
        (ENDS_ONCE, "template 'model': .* rewrites earlier turns .*of 2 and of 3 turns"),
        ("{{ raise_exception('no, thanks') }}", "template 'model': .* refuses .*: no, thanks"),
        ("{% for m in messages %}", "template 'model': .* is no Jinja: .* at line 1"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write the answer 'A ring.'"),
    ],
)
def test_unfit_templates_are_refused_by_name(model, template, message):
    tokenizer, _ = model(template)
    with pytest.raises(ValueError, match=f"record 'm57': .*{message}|record 'm57': {message}"):
        chat.render("m57", turns_of(TEXTS), "", "model", tokenizer, 0)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", [name for name in chat.TEMPLATES if name != "model"])
def test_a_row_as_jinja_prompts_in_transformers_as_training_did(model, name, legacy):
    tokenizer, folder = model(None, legacy)
    processor = processor_of(folder, jinja_text(name))
    question = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": question}, *messages_of(TEXTS)[1:3]]
    turns = turns_of(["<image>What is this?", *TEXTS[1:3]])
    for count in (1, 3):
        text = processor.apply_chat_template(messages[:count], add_generation_prompt=True)
        ids = processor.tokenizer(text).input_ids
        expected = chat.prompt(turns[:count], name, tokenizer, 1)
        if name == "plain":  # a prompt of captions has no turns
            assert processor.apply_chat_template(messages[:1]) == "<image>"
        elif name == "llama_3":  # Meta's BOS is a literal of the template, not this tokenizer's
            assert [i for i in ids if i != tokenizer.bos_id] == expected[1:]
        else:
            assert ids == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, FORGETFUL])
def test_a_decoders_own_template_takes_pictures_as_in_training(model, template):
    _, folder = model(template)
    theirs = AutoTokenizer.from_pretrained(folder)

    def written(content, form):
        messages = [{"role": "user", "content": content}, *messages_of(TEXTS)[1:3]]
        return theirs.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, chat_template=form
        )

    taken = for_pictures(template)
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Are these alike?"}]
    # What `template: model` gives to it while training: each image on a line before the text.
    assert written(parts, taken) == written("<image>\n<image>\nAre these alike?", template)
    assert written(parts[:1], taken) == written("<image>", template)
    assert written(TEXTS[0], taken) == written(TEXTS[0], template)
    assert for_pictures(taken) == taken
    assert for_pictures(PARTS) == PARTS


def test_the_models_own_template_has_no_row():
    assert jinja_text("model") is None
