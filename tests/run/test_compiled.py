"""Where compiled programs are kept, and what is made of one that is not whole."""

import os

import jax
import jax.numpy as jnp
import pytest
from small_run import quickly

from astrollava_jax.run import compiled


@pytest.fixture
def kept(monkeypatch):
    """What a process of several, on a kind of device, tells JAX of the folder."""
    monkeypatch.delenv(compiled.VARIABLE, raising=False)

    def of(processes: int, device: str) -> list[str]:
        told: list[str] = []
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(jax, "default_backend", lambda: device)
        monkeypatch.setattr(jax.config, "update", lambda _, folder: told.append(folder))
        assert compiled.keep_compiled() == (told[0] if told else None)
        return told

    return of


def test_several_processes_on_gpus_keep_none_but_in_a_folder_that_is_named(
    kept, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert kept(2, "gpu") == [] and not (tmp_path / "home").exists()
    for processes, device in ((1, "gpu"), (2, "tpu"), (1, "cpu")):
        (folder,) = kept(processes, device)
        assert folder.startswith(str(tmp_path / "home")), (processes, device)
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "shared"))
    (folder,) = kept(2, "gpu")
    assert folder.startswith(str(tmp_path / "shared"))


def test_a_program_of_which_half_was_written_is_compiled_anew_with_a_warning(tmp_path):
    """So it is where a process is killed while it writes one: JAX writes into the last place."""

    def program() -> float:
        return float(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8))))

    with quickly(str(tmp_path)):
        expected = program()
        written = [path for path in tmp_path.iterdir() if path.name.startswith("jit__lambda")]
        for path in written:
            os.truncate(path, path.stat().st_size // 2)
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
            assert program() == expected
