"""Reads PyTorch's pickled tensors (`.bin`), with nothing but tensors let through."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from astrollava_jax import files
from astrollava_jax.weights.layout import Index
from astrollava_jax.weights.safetensors import Info

_MISSING = (
    "{path}: a .bin file needs torch, which is not installed: `pip install torch`, or "
    "convert the directory to safetensors where torch is"
)


class TorchFile:
    """One file. It is mapped into memory, so that only what is asked for is read."""

    def __init__(self, path: str):
        self.path = path
        self._tensors = _load(path)
        others = [name for name, value in self._tensors.items() if not hasattr(value, "dtype")]
        if others:
            raise ValueError(f"{path}: expected tensors only, found others: {', '.join(others)}")
        self.infos = {name: self._info(name, tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str, index: Index) -> Shaped[np.ndarray, "..."]:
        """A part of a tensor."""
        return _numpy(self._tensors[name][index])

    def _info(self, name: str, tensor: Any) -> Info:
        try:
            dtype = _numpy(tensor[:0] if tensor.ndim else tensor).dtype
        except (TypeError, RuntimeError):  # quantised, sparse, complex halves
            raise ValueError(
                f"{self.path}: tensor {name}: expected plain numbers, found {tensor.dtype}, "
                f"{tensor.layout}"
            ) from None
        return Info(tuple(tensor.shape), dtype)


def write_torch(path: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes arrays as tensors by name, as `torch.save` does.

    Raises:
        ValueError: if torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(_MISSING.format(path=path)) from None
    tensors = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        if array.dtype == ml_dtypes.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    with files.publish(path) as handle:
        torch.save(tensors, handle)


def _load(path: str) -> dict[str, Any]:
    try:
        import torch  # an extra: most models come as safetensors
    except ImportError:
        raise ValueError(_MISSING.format(path=path)) from None
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        if _is_zip(path):
            loaded = torch.load(path, mmap=True, **options)  # torch maps the file itself
        else:
            with files.open_read(path) as handle:
                loaded = torch.load(handle, **options)
    except Exception as error:  # what is no such file ends in nearly any error
        # Not torch's own words: it advises to run foreign code.
        kind = type(error).__name__
        raise ValueError(
            f"{path}: torch cannot read it as tensors alone ({kind}): it is damaged, or holds "
            "something else than tensors; nothing of it was run"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected tensors by name, found {type(loaded).__name__}")
    return loaded


def _is_zip(path: str) -> bool:
    """Whether torch wrote the file in its present form (since 1.6), which can be mapped."""
    return files.RangeReader(path).read(0, 2) == b"PK"


def _numpy(tensor: Any) -> Shaped[np.ndarray, "..."]:
    """A tensor's numbers; some kinds NumPy knows only through ml_dtypes."""
    import torch

    tensor = tensor.detach()  # parameters are tensors too
    if tensor.dtype not in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        return tensor.numpy()
    kind = getattr(ml_dtypes, str(tensor.dtype).removeprefix("torch."))
    same_width = torch.int16 if tensor.itemsize == 2 else torch.int8
    return tensor.contiguous().view(same_width).numpy().view(kind)
