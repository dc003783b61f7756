"""The layouts that a model may come in: what stands before the names of each of its parts.

The first spelling of a part is the one that is written; the others are only read.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.models.projector import LinearConfig
from astrollava_jax.params import split
from astrollava_jax.weights import projector
from astrollava_jax.weights.binding import Copies, Ignored
from astrollava_jax.weights.family import family_of
from astrollava_jax.weights.layout import Foreign, Row, Shape, expand

PARTS = ("vision", "projector", "llm", "image_newline")
"""The first words of all addresses."""

_BUFFERS: Ignored = (
    (r".*\brotary_emb\.inv_freq", "follows from rope_theta"),
    (r".*\bembeddings\.position_ids", "0, 1, 2, ..."),
)
_OTHER_HALF: Ignored = (
    (r"text_model\..*", "the half of a CLIP or SigLIP that reads"),
    (r"(visual|text)_projection\.weight", "leads to the space that both halves share"),
    (r"logit_(scale|bias)", "compares the halves"),
)
_TIED: Copies = ((r"(.*\.)?lm_head\.weight", "llm/embed/embedding"),)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Somebody's way to lay a model down in files.

    Attributes:
        name: how commands name it.
        holds: what a directory of it is, in words.
        llm: what stands before the decoder's names, and before its head's.
        vision: what stands before the tower's names.
        projector: what stands before the projector's names.
        linears: the beginnings of the names of a projector's linear maps.
        image_newline: the name of that vector, which a model with a grid has.
        ignored: what is left out on reading, with the reason.
    """

    name: str
    holds: str = "a whole LLaVA"
    llm: tuple[tuple[str, str], ...] = ()
    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    linears: Callable[[str, LlavaConfig], Sequence[str]] = lambda start, config: ()
    image_newline: tuple[str, ...] = ()
    ignored: Ignored = _BUFFERS

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that it can hold."""
        return tuple(part for part in PARTS if getattr(self, part))

    def rows(
        self, part: str, config: LlavaConfig, names: Collection[str] | None = None
    ) -> tuple[Row, ...]:
        """The table of one part: that in which most `names` stand, or the one to write."""
        tables = {
            "llm": self._llm,
            "vision": self._vision,
            "projector": self._projector,
            "image_newline": self._image_newline,
        }
        spelled = tables[part](config)
        if names is None:
            return spelled[0]
        return max(spelled, key=lambda rows: sum(row.tensor() in names for row in rows))

    def foreign(
        self,
        config: LlavaConfig,
        names: Collection[str] | None = None,
        parts: Sequence[str] | None = None,
    ) -> dict[str, Foreign]:
        """The tensors of a model in this layout, by name.

        Raises:
            ValueError: if the layout cannot hold this model.
        """
        parts = self.parts if parts is None else parts
        wanted = {a: s for a, s in shapes(config).items() if a.split("/")[0] in parts}
        rows = [row for part in parts for row in self.rows(part, config, names)]
        return expand(rows, wanted, sizes(config))

    def copies(self, config: LlavaConfig) -> Copies:
        """What a model of this config may hold twice."""
        return _TIED if config.llm.tie_embeddings else ()

    def _llm(self, config: LlavaConfig) -> list[tuple[Row, ...]]:
        rows = family_of(config.llm).rows
        return [tuple(rows(model, head, config.llm)) for model, head in self.llm]

    def _vision(self, config: LlavaConfig) -> list[tuple[Row, ...]]:
        rows = family_of(config.vision).rows
        return [tuple(rows(start, config.vision)) for start in self.vision]

    def _projector(self, config: LlavaConfig) -> list[tuple[Row, ...]]:
        return [projector.rows(self.linears(start, config)) for start in self.projector]

    def _image_newline(self, config: LlavaConfig) -> list[tuple[Row, ...]]:
        rows = [Row("image_newline/embedding", name, "d -> 1 d") for name in self.image_newline]
        return [(row,) if config.grid else () for row in rows]


def with_vocabulary(config: LlavaConfig, rows: int) -> LlavaConfig:
    """The config of a model whose tables of words have so many rows."""
    return dataclasses.replace(config, llm=dataclasses.replace(config.llm, vocab_size=rows))


def sizes(config: LlavaConfig) -> dict[str, Mapping[str, int]]:
    """The letters of the sentences, by part."""
    return {
        "vision": family_of(config.vision).sizes(config.vision),
        "projector": projector.sizes(config),
        "llm": family_of(config.llm).sizes(config.llm),
        "image_newline": {"d": config.llm.embed_dim},
    }


@functools.lru_cache(maxsize=8)
def shapes(config: LlavaConfig) -> dict[str, Shape]:
    """The shape of every parameter of ours."""
    return {address: tuple(leaf.shape) for address, leaf in split(config.abstract())[1].items()}


def _hf_linears(start: str, config: LlavaConfig) -> Sequence[str]:
    """The library knows projectors of two linear maps only."""
    depth = projector.depth(config)
    if depth != 2:
        raise ValueError(
            f"the layout hf has projectors of 2 linear maps, this model has {depth}: write it in "
            "the layout llava"
        )
    return [f"{start}linear_1.", f"{start}linear_2."]


def _original_linears(start: str, config: LlavaConfig) -> Sequence[str]:
    """A lone linear map stands by itself; of several, the odd places are the activations."""
    if isinstance(config.projector, LinearConfig):
        return [start]
    return [f"{start}{2 * index}." for index in range(projector.depth(config))]


HF = Layout(
    name="hf",
    llm=(
        ("language_model.model.", "language_model.lm_head."),  # transformers 4, to 4.51
        ("model.language_model.", "lm_head."),  # from 4.52
    ),
    vision=(
        "vision_tower.vision_model.",
        "model.vision_tower.vision_model.",
        "model.vision_tower.",  # transformers 5, in memory
        "vision_tower.",  # transformers 5, a model that was never loaded from a file
    ),
    projector=("multi_modal_projector.", "model.multi_modal_projector."),
    linears=_hf_linears,
    image_newline=("image_newline", "model.image_newline"),
)
ORIGINAL = Layout(
    name="llava",
    llm=(("model.", "lm_head."),),
    vision=("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
    projector=("model.mm_projector.",),
    linears=_original_linears,
    image_newline=("model.image_newline",),
)
MODULES = Layout(  # the modules of transformers 5 in memory, to which adapters are put
    name="modules",
    llm=(("model.language_model.", "lm_head."),),
    vision=("model.vision_tower.",),
    projector=("model.multi_modal_projector.",),
    linears=_hf_linears,
    image_newline=("model.image_newline",),
)
PROJECTOR = Layout(
    name="projector",
    holds="a projector alone",
    projector=("model.mm_projector.",),
    linears=_original_linears,
)
PEFT = Layout(name="peft", holds="an adapter")
DECODER = Layout(name="decoder", holds="a bare decoder", llm=(("model.", "lm_head."),))
TOWER = Layout(
    name="tower",
    holds="a vision tower",
    vision=("vision_model.", ""),
    ignored=_BUFFERS + _OTHER_HALF,
)
ORBAX = Layout(name="orbax")
