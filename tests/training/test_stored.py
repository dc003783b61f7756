"""Readers of a checkpoint: they verify it first, and are told when a run removes it meanwhile."""

import numpy as np
import pytest
from small_checkpoints import KERNEL, data_file, flip, saved, state

from astrollava_jax import checksums
from astrollava_jax.training.steps import prune, steps
from astrollava_jax.training.stored import Trained


def test_a_reader_verifies_before_it_gives_anything(tmp_path):
    saved(tmp_path, 3, 7)
    assert np.array_equal(Trained(str(tmp_path), 7, [KERNEL])[KERNEL], state(7).trainable[KERNEL])
    flip(data_file(tmp_path / "7"))
    with pytest.raises(ValueError, match=rf"7: .* is damaged; .*: {tmp_path}/3\n  .*crc32c"):
        Trained(str(tmp_path), 7, [KERNEL])[KERNEL]
    assert steps(str(tmp_path)) == [3, 7]  # a reader moves nothing


def test_a_reader_needs_only_the_weights(tmp_path):
    saved(tmp_path, 7)
    flip(data_file(tmp_path / "7", "optimizer"))
    assert len(Trained(str(tmp_path), 7, [KERNEL])[KERNEL]) == 16


@pytest.mark.parametrize("moment", ["before it is read", "while it is verified", "between arrays"])
def test_a_reader_is_told_that_a_run_has_removed_its_step(moment, tmp_path, monkeypatch):
    saved(tmp_path, 3, 7)
    trained = Trained(str(tmp_path), 3, [KERNEL])
    of_file = checksums.of_file

    def removed():
        monkeypatch.setattr(checksums, "of_file", of_file)
        prune(str(tmp_path), 1, None)

    if moment == "between arrays":
        assert len(trained[KERNEL]) == 16
    if moment == "while it is verified":
        monkeypatch.setattr(checksums, "of_file", lambda path: removed() or of_file(path))
    else:
        removed()
    with pytest.raises(ValueError, match=rf"/3: this .* was removed .*one of these: {tmp_path}/7$"):
        trained[KERNEL]
