"""Configs: all faults at once with the nearest name, references, overrides, a round trip."""

import pytest

from astrollava_jax import config, files
from astrollava_jax.run.config import RunConfig, changed

RUN = """
out: runs/one
epochs: 1
init: {model: base, fresh: ["projector/.*"]}
data: [{records: sky, template: plain}]
batch: {samples: 8, length: 64}
optimizer:
  groups: [{name: projector, params: "projector/.*", peak_lr: 1e-3}]
  frozen: ["vision/.*", "llm/.*"]
  schedule: {type: cosine, warmup_fraction: 0.03}
"""


def written(folder, text, name="run.yaml") -> str:
    path = str(folder / name)
    files.write_text(path, text)
    return path


def test_all_faults_are_told_at_once_with_the_nearest_name(tmp_path):
    wrong = RUN.replace("epochs: 1", "epoch: 1").replace("model: base", "modle: base")
    wrong = wrong.replace("type: cosine", "type: cosin").replace("length: 64", "length: long")
    with pytest.raises(config.ConfigError) as error:
        config.load(RunConfig, written(tmp_path, wrong))
    message = str(error.value)
    assert "4 fault" in message
    assert "epoch: unknown key; did you mean 'epochs'?" in message
    assert "init.modle: unknown key; did you mean 'model'?" in message
    assert "optimizer.schedule: Input tag 'cosin'" in message
    assert "batch.length" in message and "'long'" in message


def test_a_config_survives_its_own_file(tmp_path):
    run = config.load(RunConfig, written(tmp_path, RUN))
    assert run.optimizer.groups[0].peak_lr == 0.001
    again = config.load(RunConfig, written(tmp_path, config.dump(run), "again.yaml"))
    assert again == run


def test_overrides_are_read_as_yaml_and_checked(tmp_path):
    path = written(tmp_path, RUN)
    run = config.load(RunConfig, path, {"optimizer.groups.0.peak_lr": "2e-4", "batch.samples": "4"})
    assert (run.optimizer.groups[0].peak_lr, run.batch.samples) == (2e-4, 4)
    with pytest.raises(config.ConfigError, match=r"did you mean 'samples'"):
        config.load(RunConfig, path, {"batch.sample": "4"})
    with pytest.raises(config.ConfigError, match=r"there is no optimizer\.groups\.7"):
        config.load(RunConfig, path, {"optimizer.groups.7.peak_lr": "1"})


def test_a_reference_is_read_from_the_folder_of_its_file(tmp_path):
    (tmp_path / "mesh").mkdir()
    written(tmp_path, "{data: 2, fsdp: auto}", "mesh/two.yaml")
    run = config.load(RunConfig, written(tmp_path, RUN + "mesh: mesh/two.yaml\n"))
    assert (run.mesh.data, run.mesh.fsdp) == (2, "auto")
    with pytest.raises(config.ConfigError, match=r"three\.yaml: no such file"):
        config.load(RunConfig, written(tmp_path, RUN + "mesh: mesh/three.yaml\n"))


def test_what_may_change_between_two_starts_of_a_run(tmp_path):
    path = written(tmp_path, RUN)
    run = config.load(RunConfig, path)
    free = {"out": "elsewhere", "workers": "3", "init.model": "moved", "mesh.data": "2",
            "batch.rows_per_device": "1", "checkpoint.keep": "5", "remat": "full"}  # fmt: skip
    assert changed(run, config.load(RunConfig, path, free)) == []
    other = config.load(RunConfig, path, {"seed": "1", "batch.length": "128"})
    assert changed(run, other) == ["seed: 0 -> 1", "batch.length: 64 -> 128"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": "3"}, "exactly one of epochs"),
        ({"batch.rows": "3"}, "state exactly one"),
        ({"init.model": "null"}, "either model, or llm"),
        ({"init.model": "null", "init.base": "there", "init.llm": "here"}, "base needs model"),
        ({"optimizer.groups.0.name": "frozen"}, "none is 'frozen'"),
    ],
)
def test_contradictions_are_told(tmp_path, change, message):
    with pytest.raises(config.ConfigError, match=message):
        config.load(RunConfig, written(tmp_path, RUN), change)


def test_a_null_section_is_made_a_reference_followed_and_a_torn_value_told(tmp_path, monkeypatch):
    path = written(tmp_path, RUN + "evaluate: null\n")
    written(tmp_path, "{data: 2}", "two.yaml")
    monkeypatch.chdir(tmp_path)
    given = {"evaluate.records": "sky", "evaluate.every_steps": "5", "mesh": "two.yaml"}
    run = config.load(RunConfig, path, given)
    assert run.evaluate is not None and run.evaluate.every_steps == 5
    assert run.mesh.data == 2
    with pytest.raises(config.ConfigError, match="--seed: not YAML"):
        config.load(RunConfig, path, {"seed": "["})


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    with pytest.raises(config.ConfigError, match="these keys stand twice: epochs"):
        config.load(RunConfig, written(tmp_path, RUN + "epochs: 2\n"))


def test_differences_go_into_lists(tmp_path):
    path = written(tmp_path, RUN)
    other = config.load(RunConfig, path, {"data.0.weight": "2"})
    assert changed(config.load(RunConfig, path), other) == ["data.0.weight: 1.0 -> 2.0"]
