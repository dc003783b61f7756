"""A run directory that is removed while real processes train in it: all of them say so, and end."""

import shutil

import pytest

from astrollava_jax.cli.main import MISTAKE
from astrollava_jax.run import held


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_all_processes_say_that_their_directory_is_gone(count, tiny, tmp_path):
    out = tmp_path / "run"
    long = {"steps": 2_000, "evaluate": "null"}
    with tiny.start(out, count, 2 // count, overrides=long) as run:
        run.wait_until(lambda: held.last_good(str(out)) is not None, 400)
        good = held.last_good(str(out))
        out.rename(tmp_path / "moved")
        ended = run.ended(300)
    for one in ended:
        assert one.code == MISTAKE and "Traceback" not in one.told, one.told
        assert f"{out}: this run directory was removed or moved away" in one.told
        assert "nothing can be saved there, and checkpoint" in one.told
    assert not out.exists()
    assert good is not None and (held.last_good(str(tmp_path / "moved")) or 0) >= good
    shutil.move(tmp_path / "moved", out)
    with tiny.start(out, count, 2 // count, overrides=long) as run:
        run.wait_until(lambda: "going on after step" in run.told()[0], 400)
