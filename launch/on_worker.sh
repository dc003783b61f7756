#!/usr/bin/env bash
# What launch/tpu_pod.sh does on a worker. Its functions are sent there as text; each is told all
# that it needs, and may be called twice: gcloud does so when a connection breaks.
#
#   ~/astrollava_jax/           the package, and its environment in .venv
#   ~/astrollava_launch/START/  one start: `command`, `group` (of its processes), `log`, and at its
#                               end `code`
#   ~/astrollava_launch/now     the newest of them

# Whether a run goes on here.
running() {
  [ -s "$HOME/astrollava_launch/now/group" ] &&
    kill -0 -- "-$(cat "$HOME/astrollava_launch/now/group")" 2>/dev/null
}

# prepare STORAGE MOUNT SETUP RUN [WORD...]: mounts the storage, and installs what
# ~/astrollava_jax.tar.gz holds, if it is not installed yet. A run that goes on here stays as it is.
prepare() {
  set -euo pipefail
  local storage=$1 mount=$2 setup=$3 kind python packed
  shift 3
  if running; then
    if [ "$(cat "$HOME/astrollava_launch/now/command")" = "$(words "$@")" ]; then
      return
    fi
    echo "expected this run, or none, on this machine, found another that goes on:" \
      "$(cat "$HOME/astrollava_launch/now/command"): wait for its end, or choose another --name" >&2
    exit 2
  fi
  if ! mountpoint -q "$storage" && [ -n "$mount" ]; then
    sudo mkdir -p "$storage"
    bash -c "$mount"
  fi
  if ! mountpoint -q "$storage"; then
    echo "expected storage that outlives this machine at $storage, found nothing mounted there" \
      "after --mount '$mount': give the command that mounts it" >&2
    exit 2
  fi
  kind=$(stat -f -c %T "$storage")
  case $kind in
    ext2/ext3 | xfs | btrfs | tmpfs | overlayfs)
      echo "expected storage that all workers share at $storage, found $kind, a disk of this" \
        "machine's own: mount NFS or a bucket" >&2
      exit 2
      ;;
  esac
  if [ ! -w "$storage" ]; then
    echo "expected to write to $storage as $(id -un), found that it may not: change its owner" >&2
    exit 2
  fi
  packed=$(cksum <"$HOME/astrollava_jax.tar.gz")
  if [ "$packed" = "$(cat "$HOME/astrollava_jax/installed" 2>/dev/null)" ]; then
    return
  fi
  [ -z "$setup" ] || bash -c "$setup"
  python=$(newest_python)
  if [ -z "$python" ]; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y python3.11 python3.11-venv
    python=$(newest_python)
  fi
  if [ -z "$python" ]; then
    echo "expected Python 3.11 or newer, found $(python3 --version): give --setup 'COMMAND' that" \
      "installs one" >&2
    exit 2
  fi
  rm -rf "$HOME/astrollava_jax"
  mkdir "$HOME/astrollava_jax"
  cd "$HOME/astrollava_jax"
  tar -xzf "$HOME/astrollava_jax.tar.gz"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu]'
  echo "$packed" >installed
}

words() {
  printf '%q ' "$@"
}

newest_python() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
}

# mark FILE: on worker 0 alone; the others look for it.
mark() {
  rm -rf "$(dirname "$1")" # of earlier starts
  mkdir -p "$(dirname "$1")"
  : >"$1"
}

# attend START MARK WORK RUN [WORD...]: starts the run, or finds it, and stays until its end. The
# run does not end with the connection. Worker 0 prints what it says, the others only last lines
# that tell of a fault. The last line printed is `worker N ended with CODE`.
attend() {
  local start=$1 mark=$2 work=$3 run=$4 worker at code group lines=+1
  shift 4
  worker=$(worker_number)
  if [ ! -e "$mark" ]; then
    printf '\nworker %s: expected %s, which worker 0 wrote, found nothing: this is not one file %s\n' \
      "$worker" "$mark" "system that all workers share; mount the same one on all (--mount)"
    printf '\nworker %s ended with 2\n' "$worker"
    exit 2
  fi
  at=$HOME/astrollava_launch/$start
  mkdir -p "$HOME/astrollava_launch"
  if running; then
    at=$HOME/astrollava_launch/now
    lines=20
  elif mkdir "$at" 2>/dev/null; then
    ln -sfn "$start" "$HOME/astrollava_launch/now"
    mkdir -p "$work"
    : >"$at/log"
    words "$run" "$@" >"$at/command"
    # The end of the machine asks everything to stop: the one that waits waits on.
    # shellcheck disable=SC2016  # for the shell that waits
    (cd "$work" && PATH=$HOME/astrollava_jax/.venv/bin:$PATH exec setsid bash -c '
      trap : TERM HUP
      at=$1
      shift
      echo $$ >"$at/group"
      "$@" >"$at/log" 2>&1
      echo $? >"$at/code"' run "$at" astrollava train "$HOME/astrollava_jax/$run" "$@" \
      </dev/null >/dev/null 2>&1) &
  fi
  until [ -s "$at/group" ]; do
    sleep 0.1
  done
  group=$(cat "$at/group")
  if [ "$worker" = 0 ]; then
    tail -n "$lines" -s 0.1 -f --pid="$group" "$at/log"
  else
    tail -s 0.1 -f --pid="$group" /dev/null
  fi
  code=$(cat "$at/code" 2>/dev/null || echo 75) # none: killed, with the machine
  if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
    echo
    tail -n 20 "$at/log" | sed "s/^/worker $worker: /"
  fi
  printf '\nworker %s ended with %s\n' "$worker" "$code"
  exit "$code"
}

# As Compute Engine counts the machines of a slice; JAX asks the same.
worker_number() {
  curl -s -f -m 5 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number ||
    echo 0
}

# ask_to_stop SECONDS: has the run finish its step and save it, and waits so long for its end.
ask_to_stop() {
  local group end=$((SECONDS + $1))
  running || exit 0
  group=$(cat "$HOME/astrollava_launch/now/group")
  kill -TERM -- "-$group"
  while kill -0 -- "-$group" 2>/dev/null; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "the run has not ended within $1 seconds"
      exit 1
    fi
    sleep 0.2
  done
}
