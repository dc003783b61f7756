"""`launch/kubernetes.yaml`, held to what `run.processes` reads."""

import pytest
import yaml
from machines import ROOT

from astrollava_jax.cli.main import FAILED, MISTAKE
from astrollava_jax.run import processes


@pytest.fixture(scope="module")
def service_and_job():
    return list(yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def pod(service_and_job):
    return service_and_job[1]["spec"]["template"]["spec"]


def test_each_pod_is_told_what_a_process_asks_for(service_and_job, pod, monkeypatch):
    _, job = service_and_job
    stated = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert set(stated) == {processes.COORDINATOR, processes.COUNT}
    count = job["spec"]["completions"]
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    for index in range(count):
        monkeypatch.setenv(processes.JOB_INDEX, str(index))  # as an indexed Job tells it
        told = processes._arguments(stated)
        assert told["coordinator_address"] == stated[processes.COORDINATOR]
        assert (told["num_processes"], told["process_id"]) == (count, index)


def test_process_0_is_found_by_the_name_of_its_pod(service_and_job, pod):
    """`JOB-INDEX.SERVICE`, where the pods' subdomain is the service, which finds them by label."""
    service, job = service_and_job
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    (where,) = [each["value"] for each in pod["containers"][0]["env"] if ":" in each["value"]]
    assert where.split(":")[0] == f"{name}-0.{subdomain}"
    assert pod["subdomain"] == subdomain
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"job-name": name}


def test_all_processes_run_at_once_and_end_as_their_exit_codes_say(service_and_job, pod):
    _, job = service_and_job
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never"  # else podFailurePolicy is refused
    fails, ignored = spec["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"] == {"operator": "In", "values": [FAILED, MISTAKE]}
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert spec["podReplacementPolicy"] == "Failed"
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_what_is_mounted_is_there(pod):
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert set(mounts) == {each["name"] for each in pod["volumes"]}
    program, command, run = container["command"]
    assert (program, command) == ("astrollava", "train")
    assert run.startswith(mounts["shared"] + "/")
