"""Package metadata. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="astrollava_jax",
    version="0.1.0",
    description="LLaVA in JAX: train, resume, shard, and give the weights back to PyTorch.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["astrollava_jax", "astrollava_jax.*", "data_prep", "data_prep.*"]
    ),
    install_requires=[
        "jax>=0.10.2,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorstore>=0.1.84",  # orbax writes with it; we read with it
        "transformers>=5.0,<6",
        "tensorflow-datasets>=4.9.10,<5",
        "grain>=0.2.18,<0.3",
        "sentencepiece>=0.2",
        "protobuf>=4",  # sentencepiece's model format
        "tokenizers>=0.20",
        "jinja2>=3.1.6",
        "importlib_resources",  # tensorflow-datasets imports it without saying so
        "google-crc32c>=1.5",
        "pydantic>=2.7",
        "pyyaml>=6",
        "einops>=0.8",
        "jaxtyping>=0.3",
        "pillow>=10",
        "simplejpeg>=1.7",
        "safetensors>=0.4",
        "rich>=13",
        "tensorboard>=2.16",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "plan": ["libtpu==0.0.42.1"],  # the compiler for TPUs, as jax 0.10.2 knows it; no TPU
        "data": ["pyongc>=1.2"],
        "dev": [
            "torch==2.13.0",
            "accelerate",
            "beartype>=0.18",
            "gguf>=0.10",
            "peft>=0.17,<0.22",
            "pyright",
            "pyongc>=1.2",
            "pytest>=8",
            "pytest-timeout",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["astrollava = astrollava_jax.cli.main:main"]},
)
