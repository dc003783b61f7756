"""`launch/tpu_pod.sh` against stand-ins for gcloud and for the machines."""

import signal
import time

import pytest
from machines import World, press_ctrl_c, read_until


@pytest.fixture
def world(tmp_path):
    with World(tmp_path, workers=1) as world:
        yield world


@pytest.fixture
def two(tmp_path):
    """One whose machines are slices of two workers."""
    with World(tmp_path, workers=2) as world:
        yield world


def kinds(world):
    """What gcloud was asked for, in order, without the looks at the machine."""
    words = [line.split()[4] for line in world.calls("gcloud")]
    return [word for word in words if word != "describe"]


def test_a_run_is_installed_trained_on_all_workers_and_its_machine_deleted(two):
    two.start(1, 'echo "step 1 loss 2.5"', worker=0)
    two.start(1, 'echo "nobody asks what another worker says"', worker=1)
    code, said = two.run("tpu_pod.sh", *two.pod("--project", "sky"), "--steps", "3 4")
    assert code == 0, said
    assert "step 1 loss 2.5" in said and "nobody asks" not in said
    for worker in (0, 1):
        home = two.folder / f"worker{worker}"
        path = f"{home}/astrollava_jax/configs/my run.yaml"
        assert two.trained(worker) == [["train", path, "--steps", "3 4"]]
        assert not home.exists()  # deleted with the machine
    assert kinds(two) == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    (create,) = two.calls("create")
    wanted = "train-1 --node-id=train-1 --accelerator-type=v5litepod-16 "
    wanted += "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --project=sky"
    assert wanted in create
    assert "--force" in two.calls("delete")[0]


def test_a_machine_that_is_preempted_is_made_again_and_the_same_command_started(two):
    both_are_there = 'until [ -e "$WORLD/trained1" ]; do sleep 0.05; done'
    two.start(1, f'{both_are_there}; echo SUSPENDED >"$WORLD/state"; sleep 60', worker=0)
    two.start(1, "sleep 60", worker=1)
    code, said = two.run("tpu_pod.sh", *two.pod())
    assert code == 0, said
    assert "train-1 is gone: preempted" in said
    assert kinds(two).count("create") == 2
    for worker in (0, 1):
        first, second = two.trained(worker)
        assert first == second


def test_75_starts_the_same_command_again_on_the_same_machine(world):
    world.start(1, "exit 75")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 0, said
    assert len(world.trained()) == 2
    assert kinds(world) == ["create", *["scp", "ssh", "ssh", "ssh"] * 2, "delete"]
    assert len(world.calls("pip install")) == 1
    assert "ended with 75; start 2 of at most 100" in said


def test_a_mistake_of_one_worker_is_told_with_its_last_lines_and_not_started_again(two):
    """The first worker's 75, which gcloud gives as its own, would hide it."""
    two.start(1, "exit 75", worker=0)
    two.start(1, 'echo "astrollava: data/train: no such folder"; exit 2', worker=1)
    code, said = two.run("tpu_pod.sh", *two.pod())
    assert code == 2
    _, told = said.split("worker 1 ended with 2; its last lines:")
    assert "  astrollava: data/train: no such folder" in told
    assert len(two.trained()) == 1
    assert kinds(two)[-1] == "delete"


def test_a_limit_on_starts_ends_a_run_that_never_gets_anywhere(world):
    for number in (1, 2, 3):
        world.start(number, "exit 75")
    code, said = world.run("tpu_pod.sh", *world.pod(), ASTROLLAVA_STARTS="2")
    assert code == 75
    assert "the last that is allowed (ASTROLLAVA_STARTS=2)" in said
    assert len(world.trained()) == 2
    assert kinds(world)[-1] == "delete"


def test_a_quota_that_is_too_small_is_told_at_once(world):
    world.has("creates", "quota")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 1
    assert "RESOURCE_EXHAUSTED: Quota limit exceeded" in said
    assert "train-1 could not be asked for; gcloud says why above" in said
    assert kinds(world) == ["create"]
    assert "MAY STILL BE THERE" not in said


def test_a_machine_that_cannot_be_had_again_is_asked_for_again_later(world):
    world.has("creates", "ACTIVE\nquota\nACTIVE")
    world.start(1, 'echo FAILED >"$WORLD/state"; sleep 60')
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 0, said
    assert kinds(world).count("create") == 3
    assert len(world.trained()) == 2


def test_a_machine_that_is_never_ready_is_not_waited_for_for_ever(world):
    world.has("creates", "WAITING_FOR_RESOURCES")
    code, said = world.run("tpu_pod.sh", *world.pod(hours=0))
    assert code == 75
    assert "train-1 was not ready within 0 hours (--hours): the request is withdrawn" in said
    assert kinds(world) == ["create", "delete"]


def test_a_request_that_fails_is_told(world):
    world.has("creates", "FAILED")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 1
    assert "FAILED" in said and "train-1 did not come to be" in said
    assert kinds(world) == ["create", "delete"]


def test_an_installation_that_fails_is_tried_three_times_and_then_told(world):
    world.has("uninstallable", "ERROR: no matching distribution")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 1
    assert "ERROR: no matching distribution" in said
    assert "the installation ended with 3 (try 3 of 3)" in said
    assert not world.trained() and kinds(world)[-1] == "delete"


def test_storage_on_the_machines_own_disk_is_refused(world):
    world.has("filesystem", "ext2/ext3")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 2
    assert "expected storage that all workers share" in said and "found ext2/ext3" in said
    assert not world.trained() and kinds(world)[-1] == "delete"


def test_storage_that_the_workers_do_not_share_is_refused(two):
    two.has("unshared")
    code, said = two.run("tpu_pod.sh", *two.pod())
    assert code == 2
    assert "not one file system that all workers share" in said
    assert not two.trained() and kinds(two)[-1] == "delete"


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"name": ""}, "--name: expected a value, found none"),
        ({"storage": "shared"}, "--storage: expected an absolute path, found shared"),
        ({"hours": "soon"}, "--hours: expected a whole number, found soon"),
        ({"nmae": "x"}, "--nmae: expected RUN.yaml or one of this script's options"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_made(world, change, wanted):
    code, said = world.run("tpu_pod.sh", *world.pod(**change))
    assert code == 2 and wanted in said
    assert not world.calls("gcloud")


def test_a_run_whose_paths_would_vanish_is_refused_before_anything_is_made(world):
    (world.folder.parent / "programs" / "check").write_text("#!/bin/bash\nexit 2\n")
    code, said = world.run("tpu_pod.sh", *world.pod())
    assert code == 2 and "nothing was made" in said
    assert not world.calls("gcloud")


def test_ctrl_c_saves_the_run_and_deletes_the_machine(two):
    saves = """trap 'echo saved >>"$WORLD/saved"; exit 75' TERM; : >"$WORLD/listens$WORKER"
        until [ -e "$WORLD/listens0" ] && [ -e "$WORLD/listens1" ]; do sleep 0.05; done
        echo "step 1"; sleep 60 & wait"""
    two.start(1, saves)
    process = two.begin("tpu_pod.sh", *two.pod())
    read_until(process, "step 1")
    press_ctrl_c(process)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert (two.folder / "saved").read_text() == "saved\n" * 2
    assert "train-1 is deleted" in said and kinds(two)[-1] == "delete"


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_save(world):
    world.start(1, """trap 'echo "step 2"' TERM; echo "step 1"; while true; do sleep 1; done""")
    process = world.begin("tpu_pod.sh", *world.pod())
    read_until(process, "step 1")
    press_ctrl_c(process)
    read_until(process, "Ctrl-C once more does not wait")
    time.sleep(2.1)  # one within two seconds is the same one
    press_ctrl_c(process)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "train-1 is deleted" in said


def test_ctrl_c_leaves_the_machine_as_asked_and_the_same_command_goes_on(world):
    world.start(
        1, 'echo "step 1"; until [ -e "$WORLD/enough" ]; do sleep 0.05; done; echo "step 2"'
    )
    process = world.begin("tpu_pod.sh", *world.pod("--keep"))
    read_until(process, "step 1")
    press_ctrl_c(process)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    told = "costs until: gcloud compute tpus queued-resources delete train-1 --zone=us-west4-a"
    assert told in said and "delete" not in kinds(world)

    process = world.begin("tpu_pod.sh", *world.pod())
    read_until(process, "starts; what is said is kept")
    world.has("enough")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "step 2" in said
    assert len(world.trained()) == 1  # the one that was left there
    assert kinds(world)[-1] == "delete"


def test_a_machine_on_which_another_run_goes_on_is_left_alone(world):
    world.start(1, 'echo "step 1"; sleep 60')
    process = world.begin("tpu_pod.sh", *world.pod("--keep"))
    read_until(process, "step 1")
    press_ctrl_c(process)
    process.communicate(timeout=60)
    code, said = world.run("tpu_pod.sh", *world.pod(), "--out", "runs/other")
    assert code == 2
    assert "found another that goes on: configs/my\\ run.yaml : wait for its end, or" in said
    assert "train-1 is left as it was found, and costs until: gcloud compute tpus" in said
    assert "delete" not in kinds(world)


def test_a_machine_is_deleted_though_nobody_reads_any_more(world):
    world.start(1, 'echo "step 1"; sleep 60 & trap "exit 75" TERM; wait')
    process = world.begin("tpu_pod.sh", *world.pod())
    read_until(process, "step 1")
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 75
    assert kinds(world)[-1] == "delete" and not (world.folder / "state").exists()


def test_a_machine_that_cannot_be_deleted_is_never_left_in_silence(world):
    world.has("undeletable")
    world.start(1, 'echo "step 1"; sleep 60')
    process = world.begin("tpu_pod.sh", *world.pod())
    read_until(process, "step 1")
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "train-1 MAY STILL BE THERE, AND COST. To delete it: gcloud compute tpus" in said
