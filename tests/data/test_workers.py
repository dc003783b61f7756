"""How worker processes live: through signals, and no longer than their run."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

_RUN = """
    import multiprocessing, pathlib, signal, sys, time
    sys.path.insert(0, {tests!r})
    import small_set
    from astrollava_jax.data.lengths import measure
    from astrollava_jax.data.mixture import Mixture
    from astrollava_jax.data.pack import BatchConfig, RunPlan
    from astrollava_jax.data.pipeline import Pipeline

    def main():
        folder = pathlib.Path({folder!r})
        reader = small_set.reader(folder / "sky")
        mixture = Mixture([part.source for part in reader.parts], [1.0])
        plan = RunPlan(mixture, measure(reader, folder), BatchConfig(rows=2, length=16), epochs=1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        with Pipeline(plan, reader, workers=2).batches() as batches:
            print("started", flush=True)
            assert len(list(batches)) == plan.total_steps
        print("done", multiprocessing.active_children(), flush=True)
        with Pipeline(plan, reader, workers=2).batches() as batches:
            next(batches)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(60)

    if __name__ == "__main__":
        main()
"""


def test_workers_live_as_long_as_the_run_and_touch_no_accelerator(tmp_path):
    script = tmp_path / "run.py"
    here = os.path.dirname(__file__)
    script.write_text(textwrap.dedent(_RUN).format(tests=here, folder=str(tmp_path)))
    # With a platform that does not exist, the first jax call anywhere ends in an error.
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"JAX_PLATFORMS": "none", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process, contextlib.ExitStack() as stack:
        stack.callback(_kill_group, process.pid)
        assert process.stdout.readline() == "started\n"
        for wait in (0, 1, 1):  # before the workers have begun, while they begin, ...
            time.sleep(wait)
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "done []\n"
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
        deadline = time.monotonic() + 20
        while any(map(_lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:  # an orphan may have nobody to reap it
        return status.read().rsplit(")", 1)[1].split()[0] != "Z"
