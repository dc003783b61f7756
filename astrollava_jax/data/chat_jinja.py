"""The model's own chat template: Jinja text from its folder, rendered as transformers does.

Which characters are learned is read off the renderings of the first 1, 2, ... n turns, each of
which must begin the next one.
"""

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jinja2
import jinja2.ext
import jinja2.sandbox

from astrollava_jax.data.dialogue import Message
from astrollava_jax.data.example import IMAGE_MARKER
from astrollava_jax.data.pieces import Piece
from astrollava_jax.data.tokenizer import Tokenizer

# Breaks up the literals of special tokens in people's texts, so that only the template's own are
# tokens. Unicode keeps this code point out of all text.
_GUARD = "\ufdd0"
# What a template may write besides, where it is only asked which form it reads.
_UNNAMED = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
_ROLES = {"human": "user", "assistant": "assistant"}

Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]


class JinjaTemplate:
    """A row of the table of templates that reads its form from the tokenizer's folder.

    What is learned is the assistant's text, with what stands between the generation prompt and it,
    up to and with the special token that ends it (else up to the end of the turn). BOS is as with a
    processor of transformers: where the tokenizer adds one, and the template writes none.
    """

    learns: ClassVar[Literal["answers", "caption"]] = "answers"

    def pieces(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, ask: bool
    ) -> list[Piece]:
        """The dialogue from left to right; with `ask` it ends where the assistant speaks.

        Raises:
            ValueError: if there is no chat template, if it refuses the messages, or if n turns are
                not written as the beginning of n + 1.
        """
        render = _renderer(tokenizer)
        text, learned = _learned_spans(messages, render, tokenizer)
        if ask:
            fixed = learned[-1][1] if learned else 0
            prompted = render(messages, True)
            text = _begins(text, prompted, tokenizer, "without and with its prompt", fixed)
        pieces = _split(text, learned, tokenizer)
        wanted = sum(message.images for message in messages)
        placed = sum(piece.content == tokenizer.image_id for piece in pieces)
        if placed != wanted:
            raise ValueError(
                f"template 'model': the chat template of {tokenizer.folder} wrote {placed} "
                f"{IMAGE_MARKER} for {wanted} images: choose another template"
            )
        return pieces

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens with which an answer can end."""
        probe = [Message("human", "What is this?"), Message("assistant", "A galaxy.")]
        pieces = self.pieces(probe, tokenizer, ask=False)
        return tuple(int(p.content) for p in pieces if p.learned and not p.is_text)


def _learned_spans(
    messages: Sequence[Message], render: Render, tokenizer: Tokenizer
) -> tuple[str, list[Span]]:
    """The rendering of all messages, and the learned stretches of it."""
    text, fixed = "", 0
    learned = []
    for count, message in enumerate(messages, start=1):
        longer = _begins(
            text,
            render(messages[:count], False),
            tokenizer,
            f"of {count - 1} and of {count} turns",
            fixed,
        )
        if message.role == "assistant" and message.text:
            question = render(messages[: count - 1], True)
            _begins(
                question, longer, tokenizer, f"of {count - 1} turns with its prompt and {count}"
            )
            fixed = _end_of_answer(longer, len(question), message, tokenizer)
            learned.append((len(question), fixed))
        text = longer
    return text, learned


def _begins(shorter: str, longer: str, tokenizer: Tokenizer, which: str, fixed: int = 0) -> str:
    """`longer`, which `shorter` must begin; EOS behind its first `fixed` characters may be gone.

    Phi-3's template closes with EOS a dialogue that does not go on.
    """
    open_ended = shorter.removesuffix(tokenizer.literals["eos_token"])
    if longer.startswith(open_ended if len(open_ended) >= fixed else shorter):
        return longer
    raise ValueError(
        f"template 'model': the chat template of {tokenizer.folder} rewrites earlier turns (its "
        f"renderings {which} do not begin alike), so that no one text can be learned: choose "
        "another template"
    )


def _end_of_answer(text: str, start: int, message: Message, tokenizer: Tokenizer) -> int:
    answer = _guarded(message.text.strip(), tokenizer)
    found = text.find(answer, start)
    if found < 0:
        raise ValueError(
            f"template 'model': the chat template of {tokenizer.folder} does not write the answer "
            f"{message.text[:60]!r} as it stands: choose another template"
        )
    special = tokenizer.special_pattern.search(text, found + len(answer))
    return special.end() if special else len(text)


def _split(text: str, learned: Sequence[Span], tokenizer: Tokenizer) -> list[Piece]:
    """Cuts a rendering at special tokens and at the ends of what is learned."""
    specials = {match.start(): match for match in tokenizer.special_pattern.finditer(text)}
    cuts = {0, len(text), *itertools.chain.from_iterable(learned)}
    for match in specials.values():  # the space that a token swallows belongs to it
        cuts -= set(range(match.start() + 1, match.end()))
        cuts |= set(match.span())
    pieces = []
    for start, end in itertools.pairwise(sorted(cuts)):
        special = specials.get(start)
        content = text[start:end].replace(_GUARD, "")
        if special:
            content = tokenizer.special_id(special[0].strip())
        pieces.append(Piece(content, any(a <= start < b for a, b in learned)))
    return pieces


def _guarded(text: str, tokenizer: Tokenizer) -> str:
    return tokenizer.special_pattern.sub(_broken_up, text)


def _broken_up(match: re.Match[str]) -> str:
    literal = match[0].strip()  # without the space that it swallows
    return match[0].replace(literal, literal[0] + _GUARD + literal[1:])


def _renderer(tokenizer: Tokenizer) -> Render:
    """What writes messages with this model's template."""
    if tokenizer.chat_template is None:
        raise ValueError(
            f"template 'model': {tokenizer.folder} has no chat template (chat_template.jinja, or "
            "chat_template in tokenizer_config.json): choose another template"
        )
    try:
        template = _compile(tokenizer.chat_template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"template 'model': the chat template of {tokenizer.folder} is no Jinja: {error}, at "
            f"line {error.lineno}"
        ) from None
    content = _parts if _wants_parts(tokenizer.chat_template) else _line

    def render(messages: Sequence[Message], ask: bool) -> str:
        if not messages:
            return ""
        turns = [
            {"role": _ROLES[message.role], "content": content(message, tokenizer)}
            for message in messages
        ]
        try:
            return template.render(
                messages=turns, add_generation_prompt=ask, tools=None, **tokenizer.literals
            )
        except Exception as error:  # foreign code, which can raise anything
            raise ValueError(
                f"template 'model': the chat template of {tokenizer.folder} refuses the dialogue: "
                f"{error or type(error).__name__}"
            ) from None

    return render


def _line(message: Message, tokenizer: Tokenizer) -> str:
    """A message as one string, each image on a line before the text."""
    text = _guarded(message.text, tokenizer)
    return "\n".join([IMAGE_MARKER] * message.images + ([text] if text else []))


def _parts(message: Message, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """A message as a list of its images and its text, as templates of processors read it."""
    text = {"type": "text", "text": _guarded(message.text, tokenizer)}
    return [{"type": "image"}] * message.images + [text]


@functools.lru_cache(maxsize=8)
def _wants_parts(source: str) -> bool:
    """Whether a template reads a message's content as a list: told by which form it writes.

    One that writes both gets lists where it places pictures itself, as processors give them.
    """
    if takes_pictures(source):
        return True
    template = _compile(source)
    for content, wants in (("galaxy", False), ([{"type": "text", "text": "galaxy"}], True)):
        try:
            text = template.render(messages=[{"role": "user", "content": content}], **_UNNAMED)
        except Exception:
            continue
        if "galaxy" in text and "'text'" not in text:
            return wants
    return False


def takes_pictures(source: str) -> bool:
    """Whether a template writes a content that is a list of images and texts."""
    content = [{"type": "image"}, {"type": "text", "text": "galaxy"}]
    try:
        messages = [{"role": "user", "content": content}]
        text = _compile(source).render(messages=messages, **_UNNAMED)
    except Exception:
        return False
    return IMAGE_MARKER in text and "galaxy" in text and "'text'" not in text


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    """Compiles a chat template with what transformers offers to it.

    A template is foreign code: it reaches no file, no module and no attribute that Python hides.
    Its time and memory are not bounded, as they are not in transformers.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """Accepts `{% generation %}`, which transformers knows; the block is written as it is."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
