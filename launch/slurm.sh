#!/usr/bin/env bash
# One run under Slurm, which goes on after preemption, after its time limit and after a lost node.
#
#   sbatch [--nodes 2 --time 12:00:00 ...] launch/slurm.sh RUN.yaml [--KEY.OF.THE.FILE VALUE ...]
#
# Options of sbatch on the command line replace those below. `astrollava` must be on the PATH when
# you call sbatch, on every node (a virtual environment on the shared file system); `out`, records
# and model on a file system that all nodes see.
#
# One task for each GPU. Ahead of the time limit Slurm sends SIGUSR1 to every task: the step is
# finished and saved, all end with 75, and the job is queued again. 1 or 2 of any task ends it.
# ASTROLLAVA_STARTS=100 is how often the job is started at most.

#SBATCH --job-name=astrollava
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

starts=${ASTROLLAVA_STARTS:-100}
job=${SLURM_JOB_ID:-}

say() {
  printf 'slurm.sh: %s\n' "$*" >&2
}

if [ $# -eq 0 ]; then
  say "expected RUN.yaml, found nothing: sbatch launch/slurm.sh RUN.yaml"
  exit 2
fi
if [ -z "$job" ]; then
  say "expected to be started by Slurm, found no SLURM_JOB_ID: sbatch launch/slurm.sh $*"
  exit 2
fi
if ! command -v astrollava >/dev/null; then
  say "expected astrollava on the PATH, found none: activate its environment, then call sbatch"
  exit 2
fi

# srun gives the highest code of its tasks, so that a 75 would hide a 2: what must not be started
# again is lifted above all others.
# shellcheck disable=SC2016  # for the task's own shell
task='
  "$@" && exit 0
  code=$?
  if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then exit "$code"; fi
  echo "slurm.sh: task $SLURM_PROCID on $(hostname) ended with $code; what it said stands above" >&2
  exit $((code == 2 ? 202 : 201))'

number=$((${SLURM_RESTART_COUNT:-0} + 1))
say "start $number of at most $starts, job $job, $(date)"
code=0
# What saves its last step is not killed because another has done so already.
srun --kill-on-bad-exit=0 --wait=0 bash -c "$task" task astrollava train "$@" || code=$?

if [ "$code" -eq 0 ]; then
  exit 0
fi
if [ "$code" -gt 200 ]; then
  say "not started again: mend what the task says, then call sbatch again"
  exit $((code - 200))
fi
if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then
  say "srun ended with $code before any task told its own: read what it says; not started again"
  exit "$code"
fi
if [ "$number" -ge "$starts" ]; then
  say "ended with $code at start $number, the last that is allowed (ASTROLLAVA_STARTS=$starts)"
  exit 75
fi
say "ended with $code: queued again"
if ! scontrol requeue "$job"; then
  say "job $job could not be queued again; call sbatch again, the run goes on where it was saved"
  exit 75
fi
