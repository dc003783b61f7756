"""Model: everything that an answer needs, in one object. It is what `load_model` returns."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32

from astrollava_jax.data import chat
from astrollava_jax.data.example import Turn
from astrollava_jax.data.image import Mode
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.inference import generate as decoding
from astrollava_jax.inference.prompt import Picture, Prompt, make_prompt, pictures_per_prompt
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.params import Params
from astrollava_jax.weights.source import Source

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A LLaVA with its words and its way of seeing.

    To ask in another template, or see in another mode: `dataclasses.replace(model, template=...)`.
    """

    name: str
    """Where it comes from, for a person."""
    config: LlavaConfig
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    template: str
    """A name of `data.chat.TEMPLATES`; `model` is the folder's own."""
    image_mode: Mode
    dtype: Dtype
    """What is computed in; float32 means full products too."""
    mesh: Mesh | None = None
    """Where the parameters lie; None for one device."""
    positions: int | None = None
    """How many the decoder tells apart; None where that is not known."""
    source: Source | None = dataclasses.field(default=None, repr=False)
    """The original files that it was read from, from which it is written again."""
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    """What a run trained: arrays by address that stand in for the files'."""

    def generate(
        self,
        images: Sequence[Any] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 256,
    ) -> list[str]:
        """The model's answers to bare questions, put in its template; greedy.

        Args:
            images: one entry per prompt: a picture (PIL image, array, path or encoded bytes), a
                list of several, or None; no images at all for text alone.
            prompts: the questions, with `<image>` markers or without.
            max_new_tokens: the most that an answer may have.

        Raises:
            ValueError: if images and prompts do not fit each other, or a prompt is longer than the
                model's positions; names the prompt.
        """
        asked = self._prompts(images, prompts, self._question)
        found = decoding.generate(
            self.graphdef,
            self.params,
            asked,
            self.config.image_facts,
            stop_ids=self._stop_ids,
            max_new_tokens=max_new_tokens,
            vocab_size=self.config.llm.vocab_size,
            dtype=self.dtype,
            mesh=self.mesh,
        )
        return [self.tokenizer.decode(ids).strip() for ids in found]

    def logits(
        self, images: Sequence[Any] | None, prompts: Sequence[str]
    ) -> Float32[np.ndarray, "prompts positions V"]:
        """Scores of every word at every position, image positions included, right-padded.

        Prompts are taken literally, with an `<image>` marker per picture and without a template, as
        transformers' processor takes them. Images are given as to `generate`.

        Raises:
            ValueError: if images and markers differ in number; names the prompt.
        """
        taken = self._prompts(images, prompts, self._literally)
        return decoding.logits(
            self.graphdef,
            self.params,
            taken,
            self.config.image_facts,
            vocab_size=self.config.llm.vocab_size,
            dtype=self.dtype,
            mesh=self.mesh,
        )

    def _prompts(self, images: Sequence[Any] | None, prompts: Sequence[str], make: Any):
        if isinstance(prompts, str):
            raise ValueError("expected a list of prompts, found one string: put it in a list")
        made = []
        for number, (text, pictures) in enumerate(
            zip(prompts, pictures_per_prompt(images, len(prompts)))
        ):
            try:
                made.append(make(text, pictures))
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}") from None
        return made

    def _question(self, text: str, pictures: Sequence[Picture]) -> Prompt:
        turns = [Turn("human", text)]
        ids = chat.prompt(turns, self.template, self.tokenizer, len(pictures))
        made = self._make(ids, pictures)
        if self.positions is not None and len(made.tokens) > self.positions:
            raise ValueError(
                f"takes {len(made.tokens)} positions with its {len(pictures)} picture(s), but the "
                f"model has {self.positions}: ask in fewer words, or of fewer pictures"
            )
        return made

    def _literally(self, text: str, pictures: Sequence[Picture]) -> Prompt:
        return self._make(self.tokenizer.encode_prompt(text), pictures)

    def _make(self, ids: Sequence[int], pictures: Sequence[Picture]) -> Prompt:
        facts = self.config.image_facts
        return make_prompt(ids, pictures, self.tokenizer.image_id, self.image_mode, facts)

    @functools.cached_property
    def _stop_ids(self) -> tuple[int, ...]:
        return chat.stop_ids(self.template, self.tokenizer)
