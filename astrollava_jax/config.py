"""How any config is declared, read, overridden and saved. It knows none of them.

A config is a frozen dataclass beside the thing that it configures; the type of a config names the
class that it builds. Files are YAML; a string that ends in `.yaml` where a mapping is expected
stands for that file (composition by reference, never inheritance).
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic
import yaml

from astrollava_jax import files

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be used; the message lists everything that is wrong with it."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Declares a config: frozen, keyword only, and closed to unknown keys."""
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # pyright: ignore
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def load(kind: type[T], path: str, overrides: Mapping[str, Any] | None = None) -> T:
    """Reads a config file, with dotted overrides laid over it.

    Raises:
        ConfigError: if the file or what it says is wrong; lists all faults with their paths.
    """
    tree = read(path)
    for key, value in (overrides or {}).items():
        override(tree, key, value)
    return parse(kind, tree, path)


def read(path: str) -> dict[str, Any]:
    """Reads a YAML mapping; a reference is followed from the folder of the file that holds it."""
    if not files.exists(path):
        raise ConfigError(f"{path}: expected a YAML file, found nothing there")
    tree = _parsed(files.read_text(path), path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return _follow(tree, os.path.dirname(os.path.abspath(path)))


def override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets `a.b.c` in a tree of mappings and lists; a text value is read as YAML."""
    node: Any = tree
    *parents, last = [part.replace("-", "_") for part in dotted.split(".")]
    for depth, part in enumerate(parents):
        try:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                node[part] = node.get(part) if node.get(part) is not None else {}
                node = node[part]
        except (ValueError, IndexError, AttributeError):
            raise ConfigError(f"--{dotted}: there is no {'.'.join(parents[: depth + 1])}") from None
    if isinstance(value, str):
        value = _parsed(value, f"--{dotted}")
        # A text stands where a text stood; elsewhere a file's name stands for its content.
        was_text = isinstance(node, dict) and isinstance(node.get(last), str)
        value = value if was_text else _follow(value, os.getcwd())
    try:
        node[int(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError, TypeError):
        raise ConfigError(
            f"--{dotted}: {'.'.join(parents) or 'the run'} has no key {last}"
        ) from None


def parse(kind: type[T], tree: Any, origin: str = "config") -> T:
    """Checks a tree of plain values against a config class.

    Raises:
        ConfigError: all faults at once, one line each: dotted path, what is wrong, nearest name.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        lines = [f"  {line}" for line in _faults(kind, error)]
        raise ConfigError(f"{origin}: {len(lines)} fault(s)\n" + "\n".join(lines)) from None


def plain(value: Any) -> Any:
    """A config as mappings, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def dump(value: Any) -> str:
    """A config as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """The dotted keys in which two configs differ, with both values."""
    one, other = plain(one), plain(other)
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in [*one, *(key for key in other if key not in one)]:
            where = f"{at}.{key}" if at else str(key)
            found += differences(one.get(key), other.get(key), where)
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other))
        return [line for index, pair in pairs for line in differences(*pair, f"{at}.{index}")]
    return [] if one == other else [f"{at}: {one!r} -> {other!r}"]


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as everybody expects, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; a key that stands twice is an error, where YAML takes the last."""
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"these keys stand twice: {', '.join(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parsed(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from None


def _follow(tree: Any, folder: str, chain: tuple[str, ...] = ()) -> Any:
    """Replaces each value that is the name of a YAML file by that file's content."""
    if isinstance(tree, dict):
        return {key: _follow(value, folder, chain) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_follow(value, folder, chain) for value in tree]
    if isinstance(tree, str) and tree.endswith(".yaml"):
        path = os.path.join(folder, tree)
        if path in chain:
            raise ConfigError(f"{path} refers to itself through {' -> '.join(chain)}")
        if not files.exists(path):
            raise ConfigError(f"{path}: no such file (named as {tree!r})")
        inner = _parsed(files.read_text(path), path)
        return _follow(inner, os.path.dirname(path), (*chain, path))
    return tree


def _faults(kind: Any, error: pydantic.ValidationError) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(map(str, fault["loc"])) or "the whole"
        if fault["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}: unknown key{_nearest(kind, fault['loc'])}")
        elif fault["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
            lines.append(f"{where}: required, and missing")
        else:
            found = fault.get("input")
            shown = (
                ""
                if isinstance(found, dict | list) or fault["type"] == "value_error"
                else (f" (found {found!r})")
            )
            lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}{shown}")
    return list(dict.fromkeys(lines))


def _nearest(kind: Any, location: Sequence[int | str]) -> str:
    """The nearest known key, as a question, or all of them."""
    known = _keys_at(kind, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that a config may have at a place; unions are looked through."""
    candidates = [kind]
    for part in location:
        following = []
        for candidate in _classes(candidates):
            hints = typing.get_type_hints(candidate)
            if part in hints:
                following.append(hints[part])
        # A tag of a union or an index of a list is part of the path and names no field.
        candidates = following or candidates
    return sorted({field.name for c in _classes(candidates) for field in dataclasses.fields(c)})


def _classes(kinds: Sequence[Any]) -> list[Any]:
    found = []
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            found.append(kind)
        else:
            found += _classes([k for k in typing.get_args(kind) if k is not kind])
    return found
