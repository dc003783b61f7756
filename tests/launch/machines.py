"""Stand-ins for clouds and clusters: small programs that note how they are called and answer so.

They come first on the PATH; the scripts of `launch/` are run as they are, by bash. What is sent to
a worker is run here, in a home of that worker's.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Without the text of what is sent to a worker.
NOTE = r"""
printf -v note '%q ' "${0##*/}" "${@/#--command=*/--command}"
printf '%s\n' "$note" >>"$WORLD/calls"
"""

GCLOUD = r"""
zone= which= command= positional=()
for word in "$@"; do
  case $word in
    --worker=*) which=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    --*) ;;
    *) positional+=("$word") ;;
  esac
done
missing() { echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; }
state() { [ -e "$WORLD/state" ] || missing; cat "$WORLD/state"; }
on() { # N: as ssh runs the command there
  (cd "$WORLD/worker$1" && exec env HOME="$WORLD/worker$1" WORKER="$1" bash -c "$command")
}
gone() { # the processes of the machines end with them
  for group in "$WORLD"/worker*/astrollava_launch/start-*/group; do
    [ ! -e "$group" ] || kill -KILL -- "-$(cat "$group")" 2>/dev/null
  done
  rm -rf "$WORLD"/worker* "$WORLD/state"
}
case "${positional[2]} ${positional[3]}" in
  "queued-resources create")
    answer=$(sed -n "$(grep -c 'queued-resources create' "$WORLD/calls")p" "$WORLD/creates")
    case $answer in
      quota) echo "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded" >&2; exit 1 ;;
    esac
    for ((n = 0; n < WORKERS; n++)); do mkdir "$WORLD/worker$n"; done
    echo "${answer:-ACTIVE}" >"$WORLD/state" ;;
  "queued-resources describe") state ;;
  "tpu-vm describe") state >/dev/null; echo READY ;;
  "queued-resources delete")
    [ ! -e "$WORLD/undeletable" ] || exit 1
    state >/dev/null; gone ;;
  "tpu-vm scp")
    state >/dev/null
    for ((n = 0; n < WORKERS; n++)); do cp "${positional[4]}" "$WORLD/worker$n/"; done ;;
  "tpu-vm ssh")
    state >/dev/null
    [ ! -e "$WORLD/unshared" ] || rm -rf "$STORAGE/.astrollava_launch"
    if [ "$which" != all ]; then on "$which"; exit; fi
    processes=()
    for ((n = 0; n < WORKERS; n++)); do on "$n" & processes+=($!); done
    first=0
    for process in "${processes[@]}"; do
      wait "$process" || { code=$?; [ "$first" -ne 0 ] || first=$code; }
    done
    exit "$first" ;;
  *) echo "not a call that is known: $*" >&2; exit 99 ;;
esac
"""

# Of a worker: an environment whose `astrollava` does what the world has for this start.
PYTHON3 = r"""
[ "$2" != venv ] || {
  mkdir -p "$3/bin"
  cp "$WORLD/pip" "$3/bin/python"
  cp "$WORLD/astrollava" "$3/bin/astrollava"
}
"""

PIP = """
echo "worker$WORKER: pip ${*:3}" >>"$WORLD/calls"
[ ! -e "$WORLD/uninstallable" ] || { cat "$WORLD/uninstallable"; exit 3; }
"""

ASTROLLAVA = r"""#!/bin/bash
: ${WORKER:=${SLURM_PROCID:-0}}
printf "%q " "worker$WORKER:" "$@" >>"$WORLD/trained$WORKER"; echo >>"$WORLD/trained$WORKER"
start=$(wc -l <"$WORLD/trained$WORKER")
for does in "$WORLD/start$start.$WORKER" "$WORLD/start$start"; do
  [ ! -e "$does" ] || { source "$does"; exit; }
done
"""

PROGRAMS = {
    "gcloud": NOTE + GCLOUD,
    "python3.11": PYTHON3,
    "python3.12": "exit 127",
    "python3.13": "exit 127",
    "sudo": '"$@"',
    "mountpoint": '[ -e "$2/.mounted" ]',
    "stat": 'cat "$WORLD/filesystem"',
    "curl": 'printf %s "$WORKER"',
    "check": NOTE,  # stands for the Python that looks where a run's paths are
    "scontrol": NOTE + '[ ! -e "$WORLD/unqueueable" ]',
    "srun": NOTE
    + r"""
while [ "${1#--}" != "$1" ]; do shift; done
highest=0
for ((n = 0; n < WORKERS; n++)); do
  SLURM_PROCID=$n "$@" || { code=$?; [ "$code" -le "$highest" ] || highest=$code; }
done
exit "$highest"
""",
}


class World:
    """A cloud and a cluster with so many workers, and a checkout whose scripts are run there.

    Its `with` block leaves no process behind on a worker.
    """

    def __init__(self, folder: Path, workers: int = 2):
        self.folder = folder / "the world"
        self.storage = folder / "shared storage"
        self.checkout = folder / "a checkout"
        self.run_file = self.checkout / "configs" / "my run.yaml"
        programs = folder / "programs"
        for made in (self.folder, self.storage, self.run_file.parent, programs):
            made.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            self._program(programs / name, "#!/bin/bash\n" + text)
        self._program(self.folder / "astrollava", ASTROLLAVA)
        self._program(self.folder / "pip", "#!/bin/bash" + PIP)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        self.run_file.write_text("out: runs/mine\n")
        subprocess.run(["git", "init", "-q"], cwd=self.checkout, check=True)
        self.has("filesystem", "nfs")
        self.has("creates", "")
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}", "WORLD": str(self.folder),
            "STORAGE": str(self.storage), "WORKERS": str(workers), "TMPDIR": str(self.folder),
            "PYTHON": str(programs / "check"), "ASTROLLAVA_PAUSE": "0.01",
            "ASTROLLAVA_LOOK": "0.1",
        }  # fmt: skip

    def _program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def has(self, name: str, text: str = "") -> None:
        """Puts a file into the world, which its programs look for."""
        (self.folder / name).write_text(text + "\n")

    def start(self, number: int, does: str, worker: int | None = None) -> None:
        """What `astrollava` does at its so manieth start, on all workers or on one."""
        self.has(f"start{number}" + ("" if worker is None else f".{worker}"), does)

    def calls(self, containing: str = "") -> list[str]:
        """How the programs were called, in order."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if containing in line]

    def trained(self, worker: int = 0) -> list[list[str]]:
        """The words with which `astrollava` was started on a worker, for each start."""
        path = self.folder / f"trained{worker}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [shlex.split(line)[1:] for line in lines]

    def begin(self, script: str, *words: object, **variables: str) -> subprocess.Popen[str]:
        """Starts a script of `launch/`, in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            ["bash", str(self.checkout / "launch" / script), *map(str, words)],
            env=self.environment | variables, cwd=self.checkout, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, script: str, *words: object, **variables: str) -> tuple[int, str]:
        """The same, to its end: exit code, and what it said."""
        process = self.begin(script, *words, **variables)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what still goes on, on workers that nobody deleted."""
        for path in self.folder.glob("worker*/astrollava_launch/start-*/group"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)

    def pod(self, *words: object, **replaced: object) -> list[object]:
        """The options of `tpu_pod.sh` that are always needed, then others, then the run's file."""
        options: Mapping[str, object] = {
            "name": "train-1", "zone": "us-west4-a", "type": "v5litepod-16",
            "version": "v2-alpha-tpuv5-lite", "storage": self.storage,
            "mount": f"touch {shlex.quote(str(self.storage))}/.mounted",
        } | replaced  # fmt: skip
        named = [word for key, value in options.items() for word in (f"--{key}", value)]
        return [*named, *words, "configs/my run.yaml"]


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """What a terminal does: the signal comes to the whole group in the foreground."""
    os.killpg(process.pid, signal.SIGINT)


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """What a process says, up to a line that holds these words."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if wanted in line:
            return said
    raise AssertionError(f"it ended without {wanted!r}:\n{said}")
