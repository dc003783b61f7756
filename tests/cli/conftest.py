"""What the tests of commands start from: files as a user has them, a command that is refused."""

from pathlib import Path

import pytest
import tiny_directories as tiny
import tiny_llava
import tiny_records

from astrollava_jax.cli.main import MISTAKE, main

RUN = """
out: {folder}/run
steps: 1
init: {{model: {folder}/hf}}
data: [{{records: {folder}/grey, template: plain}}]
batch: {{samples: 8, length: 64}}
optimizer:
  groups: [{{name: projector, params: "projector/.*", peak_lr: 1e-3}}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {{type: constant}}
workers: 0
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model in several layouts, a record set, and the file of a run on them."""
    folder = tmp_path_factory.mktemp("door")
    model = tiny_llava.torch_model()
    tiny.write_hf(folder / "hf", model)
    tiny.write_parts(folder / "clip", folder / "llm", model)
    tiny_records.write(folder / "grey", 16)
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    return folder


@pytest.fixture(scope="session")
def screen() -> int:
    """Lines of a terminal."""
    return 45


@pytest.fixture
def refused(capsys, screen):
    """Runs a command that must be refused; returns what is said."""

    def run(*argv: object) -> str:
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit_:  # argparse's own way out
            code = exit_.code
        said = capsys.readouterr().err
        assert code == MISTAKE, said
        assert len(said.splitlines()) <= screen, said
        assert "Traceback" not in said
        return said

    return run
