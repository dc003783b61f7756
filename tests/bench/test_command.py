"""What the proofs have in common: an option that is wrong is said before hours are spent."""

import pytest

from astrollava_jax.bench import command, full_size, hangs, kill_matrix, meshes, soak


@pytest.mark.parametrize("proof", [full_size, hangs, kill_matrix, meshes, soak])
def test_help_tells_what_is_proved(proof, capsys):
    with pytest.raises(SystemExit) as ended:
        proof.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert proof.__doc__.splitlines()[0] in told and f"{proof.__name__} [-h] --work DIR" in told


def test_a_name_that_is_unknown_is_said_before_anything_is_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        kill_matrix.main(["--work", str(tmp_path / "work"), "--kills", "SIGTERM,sigkill"])
    told = capsys.readouterr().err
    assert "expected some of SIGTERM, SIGKILL, mid-save, found sigkill" in told
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("proof", "old"),
    [
        (kill_matrix, "full-1-SIGKILL"),
        (kill_matrix, "lora-2-undisturbed"),
        (meshes, "stage1-float32-data_1_x_fsdp_8"),
        (soak, "whole-1"),
        (soak, "killed-1"),
        (hangs, "worker-0"),
    ],
)
def test_an_old_run_is_not_taken_for_a_new_one(proof, old, tmp_path):
    (tmp_path / old).mkdir()
    with pytest.raises(ValueError, match=f"found {old}: .* give another --work"):
        proof.main(["--work", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [old]


def test_what_other_proofs_left_in_a_folder_does_no_harm(tmp_path):
    for name in ("initial", "sky", "compiled", "full.yaml", "soak-1.json", "whole-1"):
        (tmp_path / name).mkdir()
    assert command.unused_folder(str(tmp_path), r"(whole|killed)-2") == str(tmp_path)


def test_a_folder_that_no_bench_has_made_is_not_written_anew(tmp_path):
    models = tmp_path / "models"
    (models / "hf").mkdir(parents=True)
    (models / "hf" / "mine").write_text("a model")
    with pytest.raises(ValueError, match="models: expected a new folder, or one that a bench"):
        full_size.main(["--work", str(models), "--tiny", "--steps", "write"])
    assert (models / "hf" / "mine").exists()
    for _ in range(2):  # new, and then its own
        own = command.own_folder(str(tmp_path / "own"))
        (tmp_path / "own" / "hf").mkdir(exist_ok=True)
    (tmp_path / "empty").mkdir()
    assert command.own_folder(str(tmp_path / "empty")) != own
    with pytest.raises(ValueError, match="mine: expected a new folder"):
        command.own_folder(str(models / "hf" / "mine"))


def test_faults_are_told_and_end_with_1(capsys):
    assert command.ended([], "figures.json") == 0
    assert command.ended(["one", "two"], "figures.json") == 1
    told = capsys.readouterr().out
    assert told == "as it must be; the figures are in figures.json\none\ntwo\n"
