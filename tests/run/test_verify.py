"""One bit flipped, the end cut off, a file gone: found in every file of everything, and never used.

Nothing here trains: a run directory is made of its parts.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from astrollava_jax import checksums, files
from astrollava_jax.cli.main import COMPLETE, FAILED, MISTAKE, main
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.quickstart import examples
from astrollava_jax.run import directory
from astrollava_jax.run.config import InitConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.opening import open_any, open_init
from astrollava_jax.run.verify import verify
from astrollava_jax.training.checkpoint import Checkpoints
from astrollava_jax.training.optimizer import AdamState
from astrollava_jax.training.state import Progress, TrainState
from astrollava_jax.training.steps import aside

TRAINED = ["projector/layers_0/kernel", "projector/layers_0/bias"]
SEEDS = range(3)


def state(step: int) -> TrainState:
    generator = np.random.default_rng(step)
    shapes = {TRAINED[0]: (32, 48), TRAINED[1]: (48,)}
    arrays = {a: jnp.asarray(generator.normal(size=shapes[a]), jnp.float32) for a in TRAINED}
    return TrainState(arrays, AdamState(jnp.int32(step), arrays, arrays))


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """A model, an export of each layout, a record set, and a run directory with two checkpoints."""
    folder = tmp_path_factory.mktemp("things")
    small_run.write_model(folder / "base")
    for layout in ("hf", "llava", "orbax"):
        convert(folder / "base", folder / layout, layout)
    sky = examples.examples(0, 6, start=0, size=small_run.SIZE)
    write_set(str(folder / "records"), sky, name="sky", split="train", records_per_shard=4)
    base, run = open_init(InitConfig(model=str(folder / "base"))), str(folder / "run")
    frozen = [address for address in base.source.shapes if address not in TRAINED]
    inherited = {"projector/layers_1/bias": np.arange(48, dtype=np.float32)}
    fresh = small_run.fresh_projector(folder / "base")
    words = files.read_text(small_run.run_file(folder, 1, fresh, folder / "run"))
    directory.begin(
        run, words, base.base, base.init, TRAINED, frozen, inherited, "plain", "pad",
        {"steps": 7, "sets": []},
    )  # fmt: skip
    name = directory.run_name(run)
    checkpoints = Checkpoints(files.join(run, directory.CHECKPOINTS), keep=3, run=name)
    for step in (3, 7):
        checkpoints.save(state(step), Progress(step=step), {})
    checkpoints.close()
    return folder


def flipped(path: Path, generator: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)


def truncated(path: Path, generator: np.random.Generator) -> None:
    os.truncate(path, int(generator.integers(path.stat().st_size)))


def deleted(path: Path, generator: np.random.Generator) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, np.random.Generator], None], ...] = (flipped, truncated, deleted)


def some_of_each_class(folder: Path) -> list[Path]:
    """Two files of every class: those whose names differ only in numbers and in the parameter."""
    classes: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = re.sub(r"state/.*/", "state/*/", str(path.relative_to(folder)))
        classes.setdefault(re.sub(r"[0-9a-f]{16,}|\d+", "#", name), []).append(path)
    return [path for paths in classes.values() for path in paths[:2]]


def damages(folder: Path, seeds=SEEDS) -> Iterator[tuple[str, str]]:
    """Damages one file after the other, each in every way at some places, and mends it again."""
    for path in some_of_each_class(folder):
        whole = path.read_bytes()
        for damage in DAMAGES:
            for seed in seeds if damage is not deleted and whole else seeds[:1]:
                if damage is not deleted and not whole:
                    continue
                damage(path, np.random.default_rng(seed))
                yield f"{damage.__name__} {seed} {path.relative_to(folder)}", path.name
                path.write_bytes(whole)


def missed(folder: Path) -> tuple[list[str], int]:
    """The damages that `verify` does not find, or whose file it does not name, and their number."""
    found, count = [], 0
    for what, name in damages(folder):
        count += 1
        try:
            told = [fault for one in verify(str(folder)) for fault in one.faults]
        except ValueError as error:
            assert what.startswith("deleted 0 checksums.json") and "nothing here can" in str(error)
            continue
        # A list that is gone is told by what is left, one that lies by the file of which it lies.
        if not any(name in fault or "manifest.<k>" in fault for fault in told) and not (
            told and name == checksums.CHECKSUMS
        ):
            found.append(what)
    return found, count


@pytest.mark.parametrize("layout", ["hf", "llava", "orbax"])
def test_every_damage_of_an_export_is_found(things, layout):
    found, count = missed(things / layout)
    assert found == [] and count > 40
    print(f"{layout}: {count} damages, all found")


def test_every_damage_of_a_record_set_is_found(things):
    found, count = missed(things / "records")
    assert found == [] and count > 40
    print(f"records: {count} damages, all found")


def test_every_damage_of_the_beginning_of_a_run_is_found_and_not_opened(things, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(things / "run", run, ignore=shutil.ignore_patterns("checkpoints"))
    found, count = missed(run)
    assert found == [] and count > 40
    print(f"beginning: {count} damages, all found")
    shutil.copytree(things / "run" / "checkpoints", run / "checkpoints")
    open_any(str(run))
    for place in ("config.yaml", "files/config.json", "inherited/model.safetensors"):
        whole = (run / place).read_bytes()
        flipped(run / place, np.random.default_rng(0))
        with pytest.raises(ValueError, match=rf"(?s)is damaged, or was edited.*{place}: expected"):
            open_any(str(run))
        (run / place).write_bytes(whole)


def test_every_damage_of_a_checkpoint_is_found_and_never_used(things, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(things / "run" / "checkpoints", folder)
    found, count = missed(folder / "7")
    assert found == [] and count > 80
    like, before, used, tried = state(0), state(3).trainable[TRAINED[0]], [], 0
    for what, _ in damages(folder / "7", SEEDS[:1]):
        kept, tried = tmp_path / "damaged", tried + 1
        shutil.copytree(folder / "7", kept)
        restored = Checkpoints(str(folder), keep=3, tell=[].append).restore_newest(like)
        right = restored is not None and restored.step == 3 and (
            np.array_equal(restored.state.trainable[TRAINED[0]], before)
        )  # fmt: skip
        used += [] if right and aside(str(folder)) else [what]
        shutil.rmtree(folder / aside(str(folder))[0])
        kept.rename(folder / "7")
    assert used == []
    print(f"checkpoint: {count} damages, all found; {tried} tried, none used")


def test_what_is_whole_is_told_in_a_line_each(things, capsys):
    assert main(["verify", str(things)]) == COMPLETE
    told = capsys.readouterr().out
    for what in ("run/checkpoints/3: checkpoint", "run: beginning of a run", "hf: model,"):
        assert f"ok       {things}/{what}" in told
    assert f"{things}/records: 6 records, 7 files" in told
    assert main(["verify", str(things / "run" / "checkpoints" / "7")]) == COMPLETE


def test_a_checkpoint_of_another_run_or_step_is_damage(things, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(things / "run", run)
    shutil.copytree(run / "checkpoints" / "7", run / "checkpoints" / "9")
    theirs = Checkpoints(str(tmp_path / "theirs"), keep=2, run="another")
    theirs.save(state(5), Progress(step=5), {})
    theirs.close()
    shutil.move(tmp_path / "theirs" / "5", run / "checkpoints" / "5")
    damaged = {found.path: found.faults for found in verify(str(run)) if found.faults}
    assert sorted(damaged) == [f"{run}/checkpoints/5", f"{run}/checkpoints/9"]
    assert "found a copy of run another" in damaged[f"{run}/checkpoints/5"][0]


def test_damage_is_exit_1_and_what_cannot_be_verified_is_exit_2(things, tmp_path, capsys):
    shutil.copytree(things / "hf", tmp_path / "hf")
    flipped(tmp_path / "hf" / "model.safetensors", np.random.default_rng(0))
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(SystemExit) as left:
        main(["verify", str(tmp_path)])
    assert left.value.code == FAILED
    told = capsys.readouterr().out
    assert "model.safetensors: expected crc32c" in told and "config.json: expected" in told
    for nothing in (tmp_path / "nowhere", things / "run" / "files" / "config.json"):
        assert main(["verify", str(nothing)]) == MISTAKE


def test_an_export_that_was_edited_still_loads_and_only_verify_complains(things, tmp_path):
    edited = tmp_path / "hf"
    shutil.copytree(things / "hf", edited)
    (edited / "README.md").write_text("mine")
    (found,) = verify(str(edited))
    assert not found.faults and found.notes == ["README.md: has no checksum"]
    (edited / "special_tokens_map.json").write_text("{}")
    (found,) = verify(str(edited))
    assert len(found.faults) == 1
    assert open_any(str(edited)).source.shapes
    os.remove(edited / checksums.CHECKSUMS)
    assert open_any(str(edited)).source.shapes


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_base_that_is_missing_or_another_is_told_by_its_file(things, tmp_path, damage):
    base = tmp_path / "base"
    shutil.copytree(things / "base", base)
    weights = base / "model.safetensors"
    if damage is flipped:  # a number, past the header
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
    else:
        damage(weights, np.random.default_rng(0))
    with pytest.raises(ValueError) as told:
        open_any(str(things / "run"), bases=[str(base)])
    said = str(told.value)
    expected = {
        flipped: f"{weights}: vision/",
        truncated: str(weights),
        deleted: f"as in {things}/base/model.safetensors; found no file that holds it",
    }
    assert expected[damage] in said, said
