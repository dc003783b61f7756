"""A row of the table of templates as Jinja text, so that other systems prompt as training did."""

import json
import re

from astrollava_jax.data.chat import TEMPLATES, Template
from astrollava_jax.data.chat_jinja import takes_pictures
from astrollava_jax.data.example import IMAGE_MARKER

# Content is a string, or a list of parts as processors of transformers give it. Neighbouring
# strings are joined by Jinja. BOS is left to the tokenizer.
_JINJA = """\
{{%- for message in messages -%}}
{{%- set content = message['content'] -%}}
{{%- set images = 0 -%}}
{{%- if content is not string -%}}
{{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}}
{{%- set content = content | selectattr('type', 'equalto', 'text') | list -%}}
{{%- set content = content | map(attribute='text') | join -%}}
{{%- endif -%}}
{{%- set content = {text} -%}}
{{%- if message['role'] == 'user' -%}}
{{{{- ({opening}) if loop.first else ({human}) -}}}}
{{{{- {question} -}}}}
{{%- elif message['role'] == 'assistant' -%}}
{{{{- {reply} ~ {lead} ~ content ~ {end} -}}}}
{{%- else -%}}
{{{{- raise_exception('expected the roles user and assistant, found ' ~ message['role']) -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{{{- ({reply}) if add_generation_prompt else '' -}}}}
"""

# No line end behind it: the foreign template's text follows as it is.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set parts = message['content'] -%}
{%- set images = parts | selectattr('type', 'equalto', 'image') | list | length -%}
{%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- set lines = [<image>] * images + ([text] if text else []) -%}
{%- set flat.messages = flat.messages
    + [{'role': message['role'], 'content': lines | join('\\n')}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages %}"""


def for_pictures(template: str) -> str:
    """A decoder's own chat template, made to take lists of images and texts as well.

    Each image comes on a line before the text, as in training with the template `model`. One that
    reads such lists by itself stays as it is.
    """
    if takes_pictures(template):
        return template
    return _FLATTEN.replace("<image>", _quoted(IMAGE_MARKER)) + template


def jinja_text(template: str) -> str | None:
    """The chat template for transformers that equals a row; None for `model`, which has its own."""
    row = TEMPLATES[template]
    if not isinstance(row, Template):
        return None
    line = _quoted(f"{IMAGE_MARKER}\n")
    questions = {
        "answers": f"(({line} * images ~ content) | trim) if images else content",
        "caption": f"{_quoted(IMAGE_MARKER)} * images",
    }
    return _JINJA.format(
        opening=_expression(row.opening),
        human=_expression(row.human),
        question=questions[row.learns],
        reply=_expression(row.reply),
        lead=_expression(row.lead),
        text="content | trim" if row.strips else "content",
        end=_expression(row.end),
    )


def named_template(text: str) -> str | None:
    """The row of the table that a chat template equals; None for one of somebody's own."""
    return next((name for name in TEMPLATES if jinja_text(name) == text), None)


def _expression(text: str) -> str:
    """A template's string in Jinja: text in quotes, BOS and EOS by their names there."""
    names = {"<s>": "bos_token", "</s>": "eos_token"}
    parts = [part for part in re.split("(</?s>)", text) if part]
    return " ~ ".join(names.get(part) or _quoted(part) for part in parts) or _quoted("")


def _quoted(text: str) -> str:
    return json.dumps(text)
