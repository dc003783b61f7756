"""A run that is planned: its files, and what the compiler says of it for eight chips."""

from pathlib import Path

import jax
import pytest
import tiny_directories as tiny
import tiny_llava

from astrollava_jax import config
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.plan import Machine, Planned, plan
from astrollava_jax.weights.outline import outline

RUN = """
out: {folder}/run
steps: 1
init: {{model: {folder}/hf}}
data: [{{records: {folder}/none, template: plain}}]
batch: {{samples: 64, length: 64}}
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {{type: constant}}
mesh: {{data: 1, fsdp: 4, tensor: 2, frozen: sharded}}
remat: full
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The config files of a tiny model, and a run on it: no weights, and no records."""
    folder = tmp_path_factory.mktemp("plan")
    tiny.write_hf(folder / "hf", tiny_llava.torch_model())
    (folder / "hf" / "model.safetensors").unlink()
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return folder


@pytest.fixture(scope="session")
def planned(folder) -> Planned:
    run = config.load(RunConfig, str(folder / "run.yaml"))
    machine = Machine("eight", jax.devices(), 1 << 30, None)
    return plan(run, machine, outline(str(folder / "hf")))
