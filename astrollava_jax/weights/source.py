"""Source: a whole model by our addresses, wherever its numbers lie; read only when asked."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.data.image import Mode
from astrollava_jax.data.tokenizer import Tokenizer
from astrollava_jax.models.llava import LlavaConfig
from astrollava_jax.weights import llava
from astrollava_jax.weights.dtypes import cast
from astrollava_jax.weights.layout import Index


@dataclasses.dataclass(kw_only=True, eq=False)
class Source(abc.ABC):
    """A model's config, its parameters, and the files that travel with them.

    To read a model from somewhere else, implement the four methods.
    """

    config: LlavaConfig
    layout: str | None
    """The layout that `sidecars` truly describe; None where they are only what it was made from."""
    words: int
    """Rows of the vocabulary that the original layout has; the others were added for images."""
    image_mode: Mode
    """How the model saw pictures made square."""
    template: str
    """How it was spoken to: a name of `data.chat.TEMPLATES`."""
    sidecars: dict[str, bytes]
    """Config, tokenizer, processor and chat template files, byte for byte."""
    tokenizer_folder: str | None
    """Where the tokenizer's files are; None where there are none."""
    missing: tuple[str, ...] = ()
    """The parameters that have no numbers: a fresh projector."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read."""

    @abc.abstractmethod
    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or the part of it that `index` cuts out, in its own dtype."""

    @abc.abstractmethod
    def dtype(self, address: str) -> np.dtype:
        """What a parameter is stored as."""

    @abc.abstractmethod
    def fingerprint(self, address: str) -> str:
        """A digest of the stored bytes of a parameter, before any cast."""

    @abc.abstractmethod
    def folder_of(self, address: str) -> str:
        """The directory whose files give a parameter."""

    def files_of(self, address: str) -> tuple[str, ...]:
        """The files that give a parameter; its directory, where they are not known one by one."""
        return (self.folder_of(address),)

    @functools.cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and stored dtype of every parameter that has numbers."""
        return {
            address: jax.ShapeDtypeStruct(shape, self.dtype(address))
            for address, shape in llava.shapes(self.config).items()
            if address not in self.missing
        }

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with `<image>` and a pad.

        Raises:
            FileNotFoundError: if the model came without one.
        """
        if self.tokenizer_folder is None:
            raise FileNotFoundError(
                "the model's directory has no tokenizer.json or tokenizer.model"
            )
        return Tokenizer.from_folder(self.tokenizer_folder)


class Derived(Source):
    """A model made of another: what it does not say anew is as there."""

    def __init__(self, base: Source):
        self.base = base
        super().__init__(**{field.name: getattr(base, field.name) for field in _FIELDS})

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter of the base, or a part of it."""
        return self.base.read(address, index)

    def dtype(self, address: str) -> np.dtype:
        """What the base stores a parameter as."""
        return self.base.dtype(address)

    def fingerprint(self, address: str) -> str:
        """The base's digest."""
        return self.base.fingerprint(address)

    def folder_of(self, address: str) -> str:
        """The base's directory."""
        return self.base.folder_of(address)

    def files_of(self, address: str) -> tuple[str, ...]:
        """The base's files."""
        return self.base.files_of(address)


_FIELDS = dataclasses.fields(Source)


class Overlay(Derived):
    """A model of which something differs from its base: trained parameters, dtype, template.

    Args:
        source: the base.
        trained: arrays by address, in our shapes; they are given in the base's dtype. A mapping
            that reads its arrays when asked is asked for one at a time.
        folder: the directory that `trained` comes from.
        template: how it was trained to be spoken to, unless as the base.
        image_mode: how it was trained to see pictures, unless as the base.
        dtype: what all parameters become, unless what they are stored as.

    Raises:
        ValueError: if `trained` has addresses that the model has not; lists all of them.
    """

    def __init__(
        self,
        source: Source,
        trained: Mapping[str, Any],
        folder: files.Where,
        *,
        template: str | None = None,
        image_mode: Mode | None = None,
        dtype: Any = None,
    ):
        unknown = sorted(set(trained) - set(llava.shapes(source.config)))
        if unknown:
            raise ValueError(f"{folder}: the model has no parameters {', '.join(unknown)}")
        super().__init__(source)
        self.trained, self._folder = trained, str(folder)
        self._last: tuple[str, Any] = ("", None)
        self._dtype = None if dtype is None else np.dtype(dtype)
        self.template = template or source.template
        self.image_mode = image_mode or source.image_mode
        self.missing = tuple(address for address in source.missing if address not in trained)
        if trained or self._restates():
            self.layout = None

    def read(self, address: str, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """A parameter, or a part of it."""
        if address in self.trained:
            array = self._array(address)
            array = np.asarray(array if index is None else array[index])
        else:
            array = self.base.read(address, index)
        return cast(array, self.dtype(address), address)

    def dtype(self, address: str) -> np.dtype:
        """The base's dtype; a part that the base has no numbers for has that of its embedding."""
        if self._dtype is not None:
            return self._dtype
        fresh = address in self.base.missing
        if fresh and "llm/embed/embedding" in self.base.missing:
            return np.dtype(np.float32)  # made from nothing: kept as it was trained
        return self.base.dtype("llm/embed/embedding" if fresh else address)

    def fingerprint(self, address: str) -> str:
        """A digest of the base's bytes, or of the trained numbers as they would be stored."""
        if address not in self.trained:
            return self.base.fingerprint(address)
        return hashlib.sha256(self.read(address).tobytes()).hexdigest()[:32]

    def folder_of(self, address: str) -> str:
        """The base's directory, or the one given for what was trained."""
        return self._folder if address in self.trained else self.base.folder_of(address)

    def files_of(self, address: str) -> tuple[str, ...]:
        """The base's files, or the directory given for what was trained."""
        return (self._folder,) if address in self.trained else self.base.files_of(address)

    def take_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Puts another tokenizer in the place of the base's."""
        kept = {n: c for n, c in self.sidecars.items() if not n.startswith(("tokenizer", "added_"))}
        self.sidecars = kept | tokenizer.files()
        self.tokenizer = tokenizer
        self.tokenizer_folder = tokenizer.folder
        self.layout = None

    def _array(self, address: str) -> Any:
        """What was trained of a parameter; the last one is kept, for it is read layer by layer."""
        if self._last[0] != address:
            self._last = ("", None)
            self._last = (address, self.trained[address])
            expected, found = llava.shapes(self.config)[address], tuple(self._last[1].shape)
            if found != expected:
                raise ValueError(f"{address}: expected {list(expected)}, found {list(found)}")
        return self._last[1]

    def _restates(self) -> bool:
        """Whether the base's files say something else than what is true of this model."""
        said = (self.base.template, self.base.image_mode)
        return (self.template, self.image_mode) != said or any(
            self.dtype(address) != self.base.dtype(address) for address in self.base.shapes
        )
