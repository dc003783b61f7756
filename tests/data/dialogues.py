"""Dialogues to render, and how to read what was rendered."""

from typing import Any

from llava_words import IGNORED
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn

DIALOGUES = [
    ["<image>\nWhat is this?", "A barred spiral."],
    ["<image>", "2 arms"],
    [
        *("<image>\nHow many arms?  Count!", "2 arms.\n- one\n- two"),
        *("And the colour?", "\u65e5\u672c \U0001f30c blue"),
        *("Thanks \u00e9", "  You are  welcome "),
    ],
    ["No image here\n", "1", "Sure? ", "Yes"],
]
LLAVA = ["vicuna_v1", "llava_v1", "llama_2", "mistral_instruct"]


def turns_of(texts):
    return [Turn("assistant" if i % 2 else "human", text) for i, text in enumerate(texts)]


def messages_of(texts) -> list[dict[str, Any]]:
    """The same for transformers."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def processor_of(folder, template: str) -> LlavaProcessor:
    """What puts pictures into a chat in transformers, with the tokenizer of a folder."""
    return LlavaProcessor(
        CLIPImageProcessor(),
        AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def render(texts, template, tokenizer, caption=""):
    images = sum(text.count("<image>") for text in texts[::2])
    return chat.render("m31", turns_of(texts), caption, template, tokenizer, images)


def labels_of(rendered):
    pairs = zip(rendered.tokens.tolist(), rendered.learned.tolist())
    return [token if learned else IGNORED for token, learned in pairs]


def learned_text(rendered, tokenizer):
    return tokenizer.decode(rendered.tokens[rendered.learned].tolist())
