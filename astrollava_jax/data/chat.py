"""Dialogues as token ids, with the mask of what is learned made together with them.

A template is a row of strings. To let the assistant speak in another form, add a row.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from astrollava_jax.data.chat_jinja import JinjaTemplate
from astrollava_jax.data.dialogue import Message, captioned, messages_of
from astrollava_jax.data.example import Turn
from astrollava_jax.data.pieces import Piece, Rendered, assemble
from astrollava_jax.data.tokenizer import Tokenizer

_SPECIAL = re.compile(r"(<s>|</s>|<\|[a-z_]+\|>)")


@dataclasses.dataclass(frozen=True)
class Template:
    """How a dialogue is written; the strings may hold special tokens by their literals.

        opening  text  reply  lead text end  human  text  reply  lead text end
                              #############                      ############# learned

    `<s>` and `</s>` stand for the tokenizer's own BOS and EOS. Another literal is a token where the
    tokenizer has it, and ordinary text where it has not, as in LLaVA.

    Attributes:
        opening: before the first human text.
        human: before each later human text.
        reply: after a human text; a prompt ends with it.
        lead: before an answer, learned with it.
        end: after an answer, learned with it.
        needs: special tokens without which the template makes no sense.
        strips: whether the space around every text is cut.
        learns: `answers`, or the `caption` (else the first answer) after the images alone.
    """

    opening: str = ""
    human: str = ""
    reply: str = ""
    lead: str = ""
    end: str = ""
    needs: tuple[str, ...] = ()
    strips: bool = False
    learns: Literal["answers", "caption"] = "answers"

    def pieces(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, ask: bool
    ) -> list[Piece]:
        """The dialogue from left to right; with `ask` it ends where the assistant speaks."""
        for literal in self.needs:
            tokenizer.special_id(literal)
        pieces: list[Piece] = []
        for number, message in enumerate(messages):
            text = message.text.strip() if self.strips else message.text
            if message.role == "human":
                before = self.human if number else self.opening
                pieces += _written(before, tokenizer)
                pieces += _human_text(message.images, text, tokenizer, self.learns == "answers")
            else:
                # An empty answer teaches nothing, not even to be silent.
                learned = bool(text)
                pieces += _written(self.reply, tokenizer)
                pieces += _written(self.lead, tokenizer, learned)
                pieces += [Piece(text, learned)]
                pieces += _written(self.end, tokenizer, learned)
        return pieces + _written(self.reply, tokenizer) if ask else pieces

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens with which an answer can end."""
        ends = _written(self.end, tokenizer)
        special = [int(piece.content) for piece in ends if not piece.is_text]
        if special:
            return tuple(special)
        return tokenizer.ids_ending_with(self.end)


def _written(text: str, tokenizer: Tokenizer, learned: bool = False) -> list[Piece]:
    """A template's string as pieces: the special tokens in it by their ids."""
    ids = tokenizer.special_ids | {"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id}
    parts = (part for part in _SPECIAL.split(text) if part)
    contents = (ids.get(part, part) for part in parts)
    return [Piece(content, learned) for content in contents if content is not None]


def _human_text(images: int, text: str, tokenizer: Tokenizer, lines: bool) -> list[Piece]:
    """The images, each on a line of its own where `lines`, and the text."""
    after = [Piece("\n")] if lines else []
    pieces = [Piece(tokenizer.image_id), *after] * images + [Piece(text)]
    return pieces[: -len(after) - 1] if images and not text else pieces


_VICUNA = Template(
    opening=(
        "A chat between a curious {person} and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the {person}'s questions. USER: "
    ),
    human="USER: ",
    reply=" ASSISTANT:",
    lead=" ",
    end="</s>",
)

_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of "
    "answering something not correct. If you don't know the answer to a question, please don't "
    "share false information."
)

_MISTRAL = Template(opening="[INST] ", human="[INST] ", reply=" [/INST]", lead=" ", end=" </s>")

_LLAMA_3_HUMAN = "<|start_header_id|>user<|end_header_id|>\n\n"

TEMPLATES: dict[str, Template | JinjaTemplate] = {
    "plain": Template(end="\n", learns="caption"),
    "vicuna_v1": dataclasses.replace(_VICUNA, opening=_VICUNA.opening.format(person="user")),
    "llava_v1": dataclasses.replace(_VICUNA, opening=_VICUNA.opening.format(person="human")),
    "llama_2": dataclasses.replace(
        _MISTRAL,
        opening=f"[INST] <<SYS>>\n{_LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
        human="<s>[INST] ",
    ),
    "mistral_instruct": _MISTRAL,
    "chatml": Template(
        opening="<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
        human="<|im_start|>user\n",
        reply="<|im_end|><|im_start|>assistant\n",
        end="<|im_end|>",
    ),
    "llama_3": Template(
        opening="<|begin_of_text|>" + _LLAMA_3_HUMAN,
        human=_LLAMA_3_HUMAN,
        reply="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        needs=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        strips=True,
    ),
    "model": JinjaTemplate(),
}


def render(
    example_id: str,
    turns: Sequence[Turn],
    caption: str,
    template: str,
    tokenizer: Tokenizer,
    num_images: int,
) -> Rendered:
    """Writes a sample as token ids, and marks the ones to learn.

        text     USER: What is this? ASSISTANT: A barred spiral.</s>
        learned  ...............................####################

    The `<image>` markers of a human turn go to its front, each on a line of its own (LLaVA leaves
    one of several, since it knows one image per sample); without any marker the images come first.
    An answer of the assistant before the first human turn is dropped, as in LLaVA. `plain` learns
    the caption, else the first answer, after the images alone. A sample may come out with nothing
    learned (say, a dialogue without an answer).

    Raises:
        ValueError: if two turns of one role follow each other, if markers and images differ in
            number, or if there is nothing to write; names the record and the turn.

    Source: LLaVA 1.5 (arXiv 2310.03744), the templates of haotian-liu/LLaVA `conversation.py`; the
    mask equals that of its `preprocess_*` where those are right.
    """
    row = _row(template)
    try:
        if row.learns == "caption":
            messages = captioned(turns, caption, num_images)
        else:
            messages = messages_of(turns, num_images)
        return assemble(row.pieces(messages, tokenizer, ask=False), tokenizer)
    except ValueError as error:
        raise ValueError(f"record {example_id!r}: {error}") from None


def prompt(
    question_turns: Sequence[Turn], template: str, tokenizer: Tokenizer, num_images: int
) -> list[int]:
    """The ids of a dialogue that waits for the assistant; each image is one `image_id`.

    With `plain` the prompt is the images alone, as in training.

    Raises:
        ValueError: if the last turn is not a human's; and as `render`.
    """
    row = _row(template)
    messages = messages_of(question_turns, num_images)
    if messages[-1].role != "human":
        raise ValueError("expected a prompt that ends with a human turn, found an answer last")
    if row.learns == "caption":
        messages = [Message("human", "", num_images)]
    return assemble(row.pieces(messages, tokenizer, ask=True), tokenizer).tokens.tolist()


def stop_ids(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the template's own and EOS."""
    return tuple(sorted({*_row(template).stop_ids(tokenizer), tokenizer.eos_id}))


def _row(template: str) -> Template | JinjaTemplate:
    if template not in TEMPLATES:
        raise ValueError(f"template: expected one of {', '.join(TEMPLATES)}, found {template!r}")
    return TEMPLATES[template]
