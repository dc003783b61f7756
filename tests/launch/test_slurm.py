"""`launch/slurm.sh` against stand-ins for srun and scontrol."""

import re

import pytest
from machines import ROOT, World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    (tmp_path / "programs" / "astrollava").symlink_to(world.folder / "astrollava")
    world.environment["SLURM_JOB_ID"] = "4711"
    return world


COMMAND = ("slurm.sh", "configs/my run.yaml", "--steps", "3 4")


def test_a_run_that_completes_is_not_queued_again(world):
    code, _ = world.run(*COMMAND)
    assert code == 0
    assert [world.trained(task) for task in (0, 1)] == [[["train", *COMMAND[1:]]]] * 2
    assert not world.calls("scontrol")


def test_75_queues_the_job_again(world):
    world.start(1, "exit 75", worker=1)
    code, said = world.run(*COMMAND)
    assert code == 0
    assert world.calls("scontrol") == ["scontrol requeue 4711 "]
    assert "ended with 75: queued again" in said
    world.environment["SLURM_RESTART_COUNT"] = "1"
    assert world.run(*COMMAND)[0] == 0
    assert len(world.calls("scontrol")) == 1


def test_a_task_that_is_killed_queues_the_job_again(world):
    world.start(1, "kill -KILL $$")
    world.run(*COMMAND)
    assert world.calls("scontrol") == ["scontrol requeue 4711 "]


@pytest.mark.parametrize("mistake", [1, 2])
def test_a_mistake_of_one_task_is_not_hidden_by_a_75_or_a_kill(world, mistake):
    world.start(1, f'echo "astrollava: no such folder"; exit {mistake}', worker=0)
    world.start(1, ["exit 75", "kill -KILL $$"][mistake - 1], worker=1)
    code, said = world.run(*COMMAND)
    assert code == mistake
    assert "astrollava: no such folder" in said
    assert re.search(rf"task 0 on \S+ ended with {mistake}", said)
    assert not world.calls("scontrol")


def test_the_starts_have_a_limit(world):
    world.start(1, "exit 75")
    code, said = world.run(*COMMAND, SLURM_RESTART_COUNT="2", ASTROLLAVA_STARTS="3")
    assert code == 75
    assert "ended with 75 at start 3, the last that is allowed" in said
    assert not world.calls("scontrol")


def test_a_cluster_that_queues_nothing_again_is_told(world):
    world.has("unqueueable")
    world.start(1, "exit 75")
    code, said = world.run(*COMMAND)
    assert code == 75
    assert "call sbatch again, the run goes on where it was saved" in said


def test_an_srun_that_cannot_begin_is_not_tried_for_ever(world):
    (world.folder.parent / "programs" / "srun").write_text(
        "#!/bin/bash\necho 'srun: error: Unable to create step'\nexit 1\n"
    )
    code, said = world.run(*COMMAND)
    assert code == 1 and "Unable to create step" in said
    assert not world.calls("scontrol")


def test_what_is_missing_is_told(world):
    assert world.run("slurm.sh")[1].startswith("slurm.sh: expected RUN.yaml, found nothing")
    (world.folder.parent / "programs" / "astrollava").unlink()
    code, said = world.run(*COMMAND, PATH=f"{world.folder.parent / 'programs'}:/usr/bin:/bin")
    assert code == 2 and "activate its environment" in said
    del world.environment["SLURM_JOB_ID"]
    code, said = world.run(*COMMAND)
    assert code == 2 and "found no SLURM_JOB_ID" in said


def test_what_sbatch_reads_stands_before_the_first_command():
    """It reads no further. SIGUSR1 is one that a run knows, with time left to save."""
    from astrollava_jax.training.preemption import SIGNALS

    head, _, _ = (ROOT / "launch" / "slurm.sh").read_text().partition("\nset ")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", head, re.MULTILINE))
    assert {"requeue", "open-mode", "signal", "ntasks-per-node"} <= set(options)
    name, seconds = options["signal"].split("@")  # B: would mean the script alone
    assert f"SIG{name}" in [number.name for number in SIGNALS]
    assert int(seconds) >= 120
    assert options["ntasks-per-node"] == options["gres"].removeprefix("gpu:")
