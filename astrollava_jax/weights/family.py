"""A family of decoders or towers in other people's words: its tensors' names and its config's keys.

A family is a file beside this one that has the name of our config's `type` and holds a `FAMILY`.
It is found by the unions `Llm` and `Vision` of `models/llava.py`, so that nothing else lists it.
"""

import dataclasses
import functools
import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astrollava_jax.config import parse
from astrollava_jax.models import llava
from astrollava_jax.weights.layout import Row, Sizes

Tree = Mapping[str, Any]
UNIONS = {"vision": llava.Vision, "llm": llava.Llm}


@dataclasses.dataclass(frozen=True)
class Key:
    """Where one of our fields stands in a config of transformers.

    Attributes:
        theirs: the key.
        default: what holds where it is absent (the class default there), or a function of our
            fields that stand above it in the table.
        null: whether null is a value; else it means absent.
    """

    theirs: str
    default: Any
    null: bool = False

    def read(self, tree: Tree, above: Mapping[str, Any]) -> Any:
        """The value in a config."""
        value = tree.get(self.theirs)
        if value is not None or (self.null and self.theirs in tree):
            return value
        return self.default(above) if callable(self.default) else self.default

    def write(self, value: Any) -> Any:
        """The value as a config has it: transformers takes no 256.0 where its default is 256."""
        counts = isinstance(self.default, int) and isinstance(value, float) and value.is_integer()
        return int(value) if counts else value


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One `model_type` of transformers that our config can describe.

    Attributes:
        model_type: as `config.json` has it.
        architecture: the class of the bare model.
        keys: our fields and where they stand.
        constants: our fields that have one value in every model of this type.
        fixed: keys that our formulas take for granted: the values that they may have, of which the
            first is written.
        original: what the original LLaVA calls a model on it: `model_type` and class.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, Key]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    original: tuple[str, str] | None = None

    def fits(self, config: Any) -> bool:
        """Whether it can describe a model."""
        return all(getattr(config, ours) == value for ours, value in self.constants.items())


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that other people's files say of one of our configs.

    Attributes:
        config: our class.
        dialects: the types of transformers that it covers; the first that fits is written.
        rows: the tensors, given what stands before the names (a decoder's: and before its head's)
            and the config.
        sizes: the letters of the rows.
        read_extra: the fields whose keys are more than a name, of a tree.
        write_extra: the same as keys.
        extra_faults: what a tree says besides that our formulas do not do.
    """

    config: type
    dialects: tuple[Dialect, ...]
    rows: Callable[..., Sequence[Row]]
    sizes: Callable[[Any], Sizes]
    read_extra: Callable[[Tree], dict[str, Any]] = lambda tree: {}
    write_extra: Callable[[Any], dict[str, Any]] = lambda config: {}
    extra_faults: Callable[[Tree], list[str]] = lambda tree: []

    def read(self, tree: Tree, dialect: Dialect) -> Any:
        """Our config of a tree that has no `faults`."""
        found: dict[str, Any] = {}
        for ours, key in dialect.keys.items():
            found[ours] = key.read(tree, found)
        # JSON may say 30 where a config has 30.0.
        return parse(self.config, {**found, **dialect.constants, **self.read_extra(tree)})

    def faults(self, tree: Tree, dialect: Dialect, where: str = "") -> list[str]:
        """What a tree says that our formulas do not do."""
        return [
            *fixed_faults(tree, dialect.fixed, where),
            *(f"{where}{fault}" for fault in self.extra_faults(tree)),
        ]

    def write(self, config: Any, preferred: str | None = None) -> tuple[Dialect, dict[str, Any]]:
        """The dialect and the keys that describe a model, in the type it came with if that fits.

        Raises:
            ValueError: if no type of transformers is such a model.
        """
        fitting = [dialect for dialect in self.dialects if dialect.fits(config)]
        if not fitting:
            raise ValueError(
                f"{config.type}: transformers has no model with "
                + " or ".join(str(dict(dialect.constants)) for dialect in self.dialects)
                + f" changed; found {config}"
            )
        wanted = [dialect for dialect in fitting if dialect.model_type == preferred]
        dialect = (wanted or fitting)[0]
        named = {key.theirs: key.write(getattr(config, ours)) for ours, key in dialect.keys.items()}
        fixed = {key: own for key, (own, *_) in dialect.fixed.items() if own is not None}
        return dialect, {
            "model_type": dialect.model_type, **fixed, **named, **self.write_extra(config)
        }  # fmt: skip


def family_of(config: Any) -> Family:
    """The family of one of our configs."""
    return importlib.import_module(f"astrollava_jax.weights.{config.type}").FAMILY


@functools.cache
def families(part: str) -> tuple[Family, ...]:
    """All families of a part, `llm` or `vision`."""
    union = (typing.get_args(UNIONS[part]) or (UNIONS[part],))[0]
    return tuple(family_of(member) for member in typing.get_args(union) or (union,))


def find(part: str, model_type: Any) -> tuple[Family, Dialect] | None:
    """The family and the dialect of a `model_type`; None where nobody knows it."""
    return next(
        (
            (family, dialect)
            for family in families(part)
            for dialect in family.dialects
            if dialect.model_type == model_type
        ),
        None,
    )


def known(part: str) -> list[str]:
    """The model types of a part that can be read."""
    return [dialect.model_type for family in families(part) for dialect in family.dialects]


def fixed_faults(tree: Tree, allowed: Mapping[str, tuple[Any, ...]], where: str = "") -> list[str]:
    """Keys whose value is none of the allowed ones; an absent one is right where None is."""
    return [
        fault
        for key, values in allowed.items()
        for fault in one_of(f"{where}{key}", tree.get(key), values)
    ]


def one_of(key: str, value: Any, allowed: Sequence[Any]) -> list[str]:
    """A fault, if a value is none of the allowed ones."""
    if value in allowed:
        return []
    words = " or ".join(repr(item) for item in allowed if item is not None) or "none"
    return [f"{key}: expected {words}, found {value!r}"]
