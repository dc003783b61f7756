"""LLaVA in JAX: train it in two stages, resume it anywhere, give the weights back to PyTorch.

import astrollava_jax as al
model = al.load_model("path/or/hf-dir")
model.generate(images=["m51.jpg"], prompts=["What is this?"])
al.save_model(model, "out", layout="hf")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrollava_jax.run.model import load_model as load_model
    from astrollava_jax.run.model import save_model as save_model

__version__ = "0.1.0"
_PUBLIC = {"load_model": "astrollava_jax.run.model", "save_model": "astrollava_jax.run.model"}


def __getattr__(name: str) -> Any:
    # Late (PEP 562): importing the package must not wait for jax.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
