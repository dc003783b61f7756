"""What a quickstart refuses to write over."""

import pytest

from astrollava_jax.quickstart import recipe
from astrollava_jax.run.quickstart import check_free


def test_a_folder_with_something_else_in_it(tmp_path):
    check_free(str(tmp_path / "none"))
    (tmp_path / "data").mkdir()
    check_free(str(tmp_path))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"found thesis\.tex: choose another folder with --out"):
        check_free(str(tmp_path))


def test_a_stage_that_was_changed(tmp_path):
    path = tmp_path / "stage1.yaml"
    path.write_text(recipe.STAGE1.format(folder=tmp_path))
    check_free(str(tmp_path))
    path.write_text(path.read_text().replace("steps: 300", "steps: 10"))
    with pytest.raises(ValueError, match=r"stage1\.yaml: is not the quickstart's file any more"):
        check_free(str(tmp_path))
