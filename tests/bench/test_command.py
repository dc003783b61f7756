"""What the proofs have in common: an option that is wrong is said before hours are spent."""

import pytest

from astrollava_jax.bench import command, full_size, kill_matrix, soak


@pytest.mark.parametrize("proof", [full_size, kill_matrix, soak])
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


def test_faults_are_told_and_end_with_1(capsys):
    assert command.ended([], "figures.json") == 0
    assert command.ended(["one", "two"], "figures.json") == 1
    told = capsys.readouterr().out
    assert told == "as it must be; the figures are in figures.json\none\ntwo\n"
