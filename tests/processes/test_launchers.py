"""Two real processes that find each other by what a launcher would have told them."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import pytest

from astrollava_jax.bench.processes import environment, free_port
from astrollava_jax.run import processes

PROGRAM = Path(__file__).with_name("met.py")
HERE = "127.0.0.1"

TPU = {"JAX_FORCE_TPU_INIT": "1"}
"""Makes JAX believe that it is on a machine with TPUs."""

# Variable -> its value in both processes, or in each of them. PORT stands for one that is free.
LAUNCHED: dict[str, Mapping[str, str | tuple[str, str]]] = {
    "by hand": {
        "ASTROLLAVA_COORDINATOR": f"{HERE}:PORT", "ASTROLLAVA_PROCESSES": "2",
        "ASTROLLAVA_PROCESS": ("0", "1"),
    },
    "srun": {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": HERE, "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": ("0", "1"), "SLURM_LOCALID": ("0", "1"),
        "JAX_COORDINATOR_PORT": "PORT",
    },
    "mpirun of Open MPI 4": {
        "OMPI_MCA_orte_hnp_uri": f"1531576320.0;tcp://{HERE}:34911", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": ("0", "1"), "OMPI_COMM_WORLD_LOCAL_RANK": ("0", "1"),
        "JAX_COORDINATOR_PORT": "PORT",
    },
    "mpirun of Open MPI 5": {
        "ASTROLLAVA_COORDINATOR": f"{HERE}:PORT", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": ("0", "1"),
    },
    "mpiexec of MPICH": {
        "ASTROLLAVA_COORDINATOR": f"{HERE}:PORT", "PMI_SIZE": "2", "PMI_RANK": ("0", "1"),
    },
    "an indexed Job of Kubernetes": {
        "ASTROLLAVA_COORDINATOR": f"{HERE}:PORT", "ASTROLLAVA_PROCESSES": "2",
        "JOB_COMPLETION_INDEX": ("0", "1"), "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    },
    "two slices of TPUs in Kubernetes": {
        **TPU, "TPU_WORKER_HOSTNAMES": HERE, "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": ("0", "1"), "MEGASCALE_COORDINATOR_ADDRESS": HERE,
        "JAX_COORDINATOR_PORT": "PORT",
    },
}  # fmt: skip

ALWAYS = ("by hand", "srun")
"""Those that are not left to the slow tests: what JAX detects, and what it is told."""


def outcome(
    variables: Mapping[str, str | tuple[str, str]], devices: int = 2
) -> list[tuple[int, str]]:
    """How two processes end that find these variables, and what they say."""
    port = str(free_port())
    both = []
    for number in range(2):
        own = {
            name: (value if isinstance(value, str) else value[number]).replace("PORT", port)
            for name, value in variables.items()
        }
        around = environment(devices, PYTHONPATH=str(PROGRAM.parents[2]), **own)
        both.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM)], env=around, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    told = [process.communicate(timeout=120)[0] for process in both]
    return [(process.returncode, text) for process, text in zip(both, told)]


def check_met(ended: list[tuple[int, str]]) -> None:
    for number, (code, told) in enumerate(ended):
        assert code == 0, told
        # What libraries say comes between: in front, behind, and in the same line.
        said, _ = json.JSONDecoder().raw_decode(told[told.index("{") :])
        assert said == {"process": number, "of": 2, "rows in place": True, "all": [0, 1]}


@pytest.mark.parametrize(
    "how", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in LAUNCHED]
)
def test_two_processes_meet(how):
    check_met(outcome(LAUNCHED[how]))


@contextlib.contextmanager
def metadata(worker: int) -> Iterator[str]:
    """The server that tells a TPU machine of Compute Engine about itself; where it is."""
    told = {
        "agent-worker-number": str(worker),
        "worker-network-endpoints": f"{HERE},{HERE}",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
    }

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = told[self.path.split("/")[-1]].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer((HERE, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"{HERE}:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_the_machines_of_a_tpu_pod_meet():
    with metadata(0) as one, metadata(1) as other:
        around = {**TPU, "GCE_METADATA_IP": (one, other), "JAX_COORDINATOR_PORT": "PORT"}
        check_met(outcome(around))


@pytest.mark.slow
def test_who_is_not_told_of_others_stays_alone():
    alone = {
        **TPU, "TPU_WORKER_HOSTNAMES": "localhost", "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "PMI_SIZE": "1",
    }  # fmt: skip
    for code, told in outcome(alone, devices=1):
        assert code == 0, told
        assert '{"process": 0, "of": 1, "all": [0]}' in told


@pytest.mark.parametrize(
    "variables, wanted",
    [
        ({"PROCESS": "0", "PROCESSES": "2"}, "set ASTROLLAVA_COORDINATOR too"),
        ({"COORDINATOR": "a:1"}, "set ASTROLLAVA_PROCESSES, ASTROLLAVA_PROCESS too"),
        ({"COORDINATOR": "a:1", "PROCESSES": "2"}, "set ASTROLLAVA_PROCESS too"),
        ({"COORDINATOR": "a:1", "PROCESSES": "2", "PROCESS": "2"}, "found '2' and '2'"),
        ({"COORDINATOR": "a:1", "PROCESSES": "two", "PROCESS": "0"}, "found '0' and 'two'"),
    ],
)
def test_what_is_told_by_halves_is_refused(variables, wanted, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(f"ASTROLLAVA_{name}", value)
    with pytest.raises(ValueError, match=wanted), processes.joined(10.0):
        pass


def test_a_launcher_that_tells_no_meeting_place_is_refused():
    """Two that Open MPI 5 has numbered."""
    for code, told in outcome({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": ("0", "1")}):
        assert code == 1
        assert "set ASTROLLAVA_COORDINATOR to host:port of the first" in told


def test_what_is_no_number_of_a_launcher_counts_for_nothing(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "")
    with processes.joined(10.0):
        assert jax.process_count() == 1


def test_a_program_that_wants_no_tpu_waits_for_no_pod(monkeypatch):
    """The tests run with `JAX_PLATFORMS=cpu`, as the quickstart does on a machine of a pod."""
    monkeypatch.setattr(processes.cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host0,host1")
    with processes.joined(10.0):
        assert jax.process_count() == 1
