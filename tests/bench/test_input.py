"""The bench of the input, with few and small pictures, and that it sees what is wrong."""

import dataclasses
import io
import multiprocessing
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from astrollava_jax import files
from astrollava_jax.bench import input_job, photographs, processor_time
from astrollava_jax.bench import input_measured as bench
from astrollava_jax.bench.input_measured import Ratio, compared
from astrollava_jax.cli.main import MISTAKE
from astrollava_jax.cli.main import main as astrollava

TINY = {"count": 3, "megapixels": (0.01, 0.02), "side": 28}
LENGTH = 64


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    """A row of the usual length would hold a hundred pictures of four positions."""
    monkeypatch.setattr(bench, "LENGTH", LENGTH)


@pytest.fixture(scope="module", params=["pad", "crop"])
def job(request, tmp_path_factory):
    return input_job.write(tmp_path_factory.mktemp("job"), mode=request.param, **TINY)


def test_both_programs_see_the_same_pixels(job):
    faults, found = bench.measured(job, workers=0, images=4, repeats=2)
    assert faults == []
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    assert list(found) == list(bench.MEASURED)


def test_another_picture_is_seen(job):
    first, *others = job.photographs
    turned = dataclasses.replace(job, photographs=(*others, first))
    faults, _ = bench.measured(turned, workers=0, images=1, repeats=1)
    assert [fault.split(":")[0] for fault in faults] == [f"photograph {n}" for n in range(3)]


def test_one_number_that_differs_is_seen():
    ours = np.zeros((3, 2, 2, 3), np.uint8)
    theirs = ours.copy()
    assert compared(ours, theirs) == []
    ours[1, 0, 1, 2] = 255
    assert compared(ours, theirs) == ["photograph 1: 1 numbers differ, by up to 255"]
    assert compared(ours[:2], theirs) == ["expected pixels [3, 2, 2, 3], found [2, 2, 2, 3]"]


def test_ratios_by_hand():
    found = {"slow": [40.0, 90.0, 40.0], "fast": [4.0, 3.0, 2.0]}
    assert Ratio("as used", "slow", "fast", 10.0).of(found) == [10, 30, 20]


def test_the_table_says_what_is_reached():
    found = {name: [1.0, 2.0, 9.0] for name in bench.MEASURED}
    found["theirs"] = [30.0, 40.0, 45.0]
    lines = bench.told(found)
    assert lines[1].split("files")[1].split() == ["40.00", "(30.00", "to", "45.00)"]
    used, same, alone, whole = lines[-4:]
    assert used.endswith("20.00  (5.00 to 30.00)  to reach: 10, reached")
    assert same.endswith("to reach: 1.3, reached") and alone.endswith("to reach: 0.7, reached")
    assert whole.endswith("1.00  (1.00 to 1.00)")
    slow = bench.told(found | {"theirs": [9.0, 9.0, 9.0]})
    assert slow[-4].endswith("4.50  (1.00 to 9.00)  to reach: 10, NOT reached")


def test_records_hold_the_original_files_or_smaller_ones(job):
    first = bench.Ours(job, "original", 0, 1, LENGTH).encoded(0)
    assert first == files.read_bytes(job.photographs[0])
    with Image.open(io.BytesIO(bench.Ours(job, "small", 0, 1, LENGTH).encoded(0))) as small:
        assert (max if job.mode == "pad" else min)(small.size) == 28


def test_photographs_are_neither_flat_nor_noise(tmp_path):
    names = photographs.write(tmp_path, 2, seed=5, megapixels=(0.4, 0.5))
    for name in names:
        with Image.open(tmp_path / name) as image:
            pixels = image.width * image.height
        assert 0.4e6 * 0.99 < pixels < 0.5e6 * 1.01
        assert 1.2 < bench.bits_per_pixel([(tmp_path / name).read_bytes()], [(pixels, 1)]) < 3
    again = photographs.write(tmp_path / "again", 2, seed=5, megapixels=(0.4, 0.5))
    for name in again:
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_workers_time_counts_until_it_rests():
    work = "sum(i * i for i in range(3_000_000)) and __import__('time').sleep(600)"
    worker = multiprocessing.get_context("spawn").Process(target=eval, args=(work,), daemon=True)
    worker.start()
    try:
        before = processor_time.tree_seconds()
        after = processor_time.settle()
        assert worker.pid is not None
        stat = files.read_text(f"/proc/{worker.pid}/stat").rpartition(")")[2].split()
        ticks = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        assert ticks > 0.1 and processor_time._seconds(worker.pid) == pytest.approx(ticks, abs=0.05)
        assert after - before > 0.1
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize(("taking", "waited"), [(0.9, 0.9), (0.001, 0.1 / 10.1), (0.0, 0.0)])
def test_the_part_of_the_time_that_steps_wait_by_a_clock_of_its_own(taking, waited, monkeypatch):
    """A step of ten pictures, a hundred a second, takes 0.1 s on the device."""
    now = [0.0]

    class Feed:
        def __init__(self, job, what, workers, images, length):
            assert (what, length) == ("small", LENGTH)

        def take(self):
            now[0] += taking
            return 10

        def close(self):
            now.clear()

    def sleep(seconds):
        now[0] += seconds

    none = input_job.Job("", (), (), 28, "pad")
    monkeypatch.setattr(bench, "Ours", Feed)
    monkeypatch.setattr(bench, "settle", lambda: 0.0)
    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(bench, "time", clock)
    assert bench.waited(none, workers=0, rate=100.0, steps=4) == pytest.approx(waited)
    assert now == [], "the feed is left open"


def test_a_step_that_takes_its_time_does_not_wait(job):
    assert 0 < bench.waited(job, workers=0, rate=200.0, steps=2) < 0.5


def test_without_pytorch_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "astrollava_jax.bench.input_theirs", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert astrollava(["bench", "input", "--work", str(tmp_path / "work")]) == MISTAKE
    said = capsys.readouterr().err
    assert "but torch is not there: install the extra `dev`" in said and "Traceback" not in said
    assert not (tmp_path / "work").exists()


def test_help_comes_without_what_is_measured():
    code = """\
import sys
from astrollava_jax.bench import input
try:
    input.main(["--help"])
finally:
    heavy = {"numpy", "jax", "grain", "PIL", "transformers"} & set(sys.modules)
    print("loaded:", *heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded:"


def test_a_second_measurement_begins_anew_but_removes_nothing_of_others(monkeypatch, tmp_path):
    class Begun(Exception):
        pass

    def write(folder, **_):
        (pathlib.Path(folder) / "photographs").mkdir()
        raise Begun

    monkeypatch.setattr(input_job, "write", write)
    monkeypatch.setattr(bench, "theirs_class", lambda: None)
    for _ in range(2):
        with pytest.raises(Begun):
            astrollava(["bench", "input", "--work", str(tmp_path / "work")])
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine").touch()
    assert astrollava(["bench", "input", "--work", str(tmp_path)]) == MISTAKE
    assert (tmp_path / "job" / "mine").exists()


def test_packing_needs_no_pytorch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as left:  # so few samples do not fill their last step
        astrollava(["bench", "input", "--packing-only", "--samples", "300"])
    said = capsys.readouterr().out
    assert left.value.code == 1 and "AstroLLaVA at 8192:" in said and "full rows" in said


def test_a_folder_is_needed(capsys):
    with pytest.raises(SystemExit) as left:
        astrollava(["bench", "input"])
    assert left.value.code == MISTAKE and "--work" in capsys.readouterr().err
