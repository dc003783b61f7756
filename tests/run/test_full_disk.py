"""A disk that fills up in the middle of a run: what a person reads, and what stays."""

import os
import shutil
import subprocess
import sys

from small_disk import small_disk

from astrollava_jax import files
from astrollava_jax.cli.main import FAILED
from astrollava_jax.training.steps import steps


def test_a_full_disk_is_told_once_with_the_last_good_checkpoint(stage1, compiled, tmp_path):
    with small_disk(tmp_path / "disk", kilobytes=4000) as disk:
        out = disk / "run"
        shutil.copytree(stage1.out, out)
        needed = sum(files.size_bytes(out / "checkpoints" / "8" / name)
                     for name in files.walk(out / "checkpoints" / "8"))  # fmt: skip
        shutil.rmtree(out / "checkpoints" / "8")
        free = os.statvfs(disk)
        ballast = free.f_bavail * free.f_bsize - needed // 2
        (disk / "ballast").write_bytes(bytes(ballast))
        command = [sys.executable, "-m", "astrollava_jax", "train", stage1.file, "--out", str(out)]
        environment = os.environ | {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": compiled,
        }
        run = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert run.returncode == FAILED
        reason = run.stderr.partition("saved (")[2].partition(":")[0]
        assert run.stderr == (
            f"astrollava: {out}/checkpoints/8: this checkpoint could not be saved ({reason}: No "
            f"space left on device); the last good one is {out}/checkpoints/4: mend the storage, "
            "then start again\n"
        )
        assert steps(str(out / "checkpoints")) == [4]
