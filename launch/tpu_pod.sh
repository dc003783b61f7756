#!/usr/bin/env bash
# One run on a TPU that may vanish: makes the machine, or all machines of a slice, installs this
# package there, trains, shows what worker 0 says, and does it again after every preemption.
#
#   launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE --version VERSION \
#     --storage DIR --mount COMMAND [OPTION ...] RUN.yaml [--KEY.OF.THE.FILE VALUE ...]
#
#   --name NAME         of the queued resource and of its node
#   --zone ZONE         as us-west4-a
#   --type TYPE         as v5litepod-16
#   --version VERSION   of the machine's software: v2-alpha-tpuv6e, v2-alpha-tpuv5 (v5p),
#                       v2-alpha-tpuv5-lite (v5e), tpu-ubuntu2204-base (v4)
#   --storage DIR       where the workers find storage that outlives them: out, records and model
#   --mount COMMAND     what mounts it, run on each worker where nothing is mounted there yet
#   --work DIR          on the storage: what relative paths of RUN.yaml mean (else DIR of --storage)
#   --project PROJECT   else that of your gcloud
#   --setup COMMAND     run on each worker before the installation, as one that installs a Python
#   --on-demand         a machine that is not preempted, at its full price
#   --keep              leave the machine there at the end, and when you press Ctrl-C (the run then
#                       goes on); else it is deleted
#   --hours HOURS       how long to wait for a machine at most (24)
#
# RUN.yaml lies in this checkout, which is sent to the workers as it is, without what git ignores.
#
# Exit codes: 0 complete; 2 or 1 of any worker, told with its last lines, and of what cannot be made
# the first time; 75 stopped: the same command goes on, on a machine of that name that is there too.
# Ctrl-C: the run is saved, then the machine is deleted; a second one does not wait for the save.
#
#   ASTROLLAVA_STARTS=100   how often it is started at most
#   ASTROLLAVA_PAUSE=10     seconds before the next start; doubled, up to 600, after each one that
#                           ended within ten minutes
#   ASTROLLAVA_LOOK=30      seconds between two looks at the machine

# shellcheck disable=SC2329  # `again` calls by name

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
# shellcheck source=launch/again.sh
source "$here/again.sh"
# shellcheck source=launch/on_worker.sh
source "$here/on_worker.sh"

LOOK=${ASTROLLAVA_LOOK:-30}
SAVE_SECONDS=300
TO_SEND=(running prepare words newest_python mark attend worker_number ask_to_stop)

name='' zone='' type='' version='' storage='' mount='' work='' project='' setup=''
tier=--spot keep='' hours=24 run=''
folder=''    # of this command: logs and what is sent
may_cost=''  # set while something of that name may be there that this command is to delete
found=''     # set while something of that name was there before, and may be another run's
was_ready='' # set when the first machine was ready
was_prepared='' # set when everything was installed once
attended=''  # set when a run was started, or found
group=''     # of the processes that are waited for

read_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --on-demand) tier='' ;;
      --keep) keep=yes ;;
      --help | -h)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      --name | --zone | --type | --version | --storage | --mount | --work | --project | --setup | --hours)
        if [ $# -lt 2 ]; then
          say "$1: expected a value after it, found none"
          exit "$MISTAKE"
        fi
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      -*)
        say "$1: expected RUN.yaml or one of this script's options before it (--help)"
        exit "$MISTAKE"
        ;;
      *) break ;;
    esac
    shift
  done
  run_words=("$@")
}

# All faults together, before anything is made.
check() {
  local faults='' option
  for option in name zone type version storage; do
    [ -n "${!option}" ] || faults+="--$option: expected a value, found none (--help)"$'\n'
  done
  [ -z "$storage" ] || [ "${storage#/}" != "$storage" ] ||
    faults+="--storage: expected an absolute path, found $storage"$'\n'
  [[ $hours =~ ^[0-9]+$ ]] || faults+="--hours: expected a whole number, found $hours"$'\n'
  [ ${#run_words[@]} -gt 0 ] || faults+="expected RUN.yaml, found nothing"$'\n'
  for option in gcloud git tar; do
    command -v "$option" >/dev/null || faults+="expected $option on the PATH, found none"$'\n'
  done
  [ -z "$faults" ] || refuse "$faults"
  work=${work:-$storage}

  [ -f "${run_words[0]}" ] || refuse "${run_words[0]}: expected RUN.yaml, found no such file"
  run=$(cd "$(dirname "${run_words[0]}")" && pwd)/$(basename "${run_words[0]}")
  case $run in
    "$checkout"/*) run=${run#"$checkout"/} ;;
    *) refuse "$run: expected a file in $checkout, which is sent to the workers: copy it there" ;;
  esac
  ! git -C "$checkout" check-ignore --quiet "$run" ||
    refuse "$run: git ignores it, so that it is not sent to the workers: copy it to configs/"

  say "on $storage, as the run's file has it:"
  "$(own_python)" "$here/outlives.py" "$storage" "$work" "${run_words[@]}" || refuse "nothing was made"
}

refuse() {
  say "${1%$'\n'}"
  exit "$MISTAKE"
}

own_python() {
  local python=${PYTHON:-$checkout/.venv/bin/python}
  [ -x "$python" ] || python=python3
  echo "$python"
}

tpu() {
  gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

to_delete() {
  echo "gcloud compute tpus queued-resources delete $name --zone=$zone" \
    "${project:+--project=$project }--force"
}

# What is there: none, waiting, ready, gone (it will not come back), unknown (no answer).
machine() {
  local told
  if ! told=$(tpu queued-resources describe "$name" --format='value(state.state)' 2>"$folder/told")
  then
    grep -q -i 'NOT_FOUND\|not found' "$folder/told" && echo none || echo unknown
    return
  fi
  case $told in
    FAILED | SUSPENDING | SUSPENDED | DELETING) echo gone ;;
    ACTIVE) node ;;
    *) echo waiting ;;
  esac
}

node() {
  local told
  if ! told=$(tpu tpu-vm describe "$name" --format='value(state)' 2>"$folder/told"); then
    grep -q -i 'NOT_FOUND\|not found' "$folder/told" && echo gone || echo unknown
    return
  fi
  case $told in
    READY) echo ready ;;
    PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | HIDING | HIDDEN) echo gone ;;
    *) echo waiting ;;
  esac
}

# One start. 75: again.
start_once() {
  have_machine || return $?
  prepare_workers || return $?
  attend_workers
}

have_machine() {
  local state
  state=$(machine)
  case $state in
    none) create || return $? ;;
    gone)
      may_cost=yes
      say "$name is gone (preempted, or failed): it is made again"
      delete || return "$RESUMABLE"
      create || return $?
      ;;
    unknown)
      cat "$folder/told" >&2
      say "gcloud does not tell whether $name is there"
      first_or_again "$was_ready"
      return
      ;;
    *)
      if [ -z "$may_cost$found" ]; then
        say "$name is there already ($state): goes on with it"
        found=yes
      fi
      ;;
  esac
  await_machine
}

create() {
  may_cost=yes found=''
  say "asks for $name: $type in $zone${tier:+, spot}"
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${tier:+"$tier"} && return
  say "$name could not be asked for; gcloud says why above"
  [ "$(machine)" != none ] || may_cost=''
  first_or_again "$was_ready"
}

# What fails the first time would fail again; later it may be the network.
first_or_again() {
  [ -z "$1" ] && return 1 || return "$RESUMABLE"
}

await_machine() {
  local state before='' end=$((SECONDS + 3600 * hours))
  while true; do
    state=$(machine)
    case $state in
      ready)
        was_ready=yes
        return 0
        ;;
      gone | none)
        tpu queued-resources describe "$name" --format='value(state)' >&2 || true
        say "$name did not come to be; what is known of it stands above"
        first_or_again "$was_ready"
        return
        ;;
    esac
    [ "$state" = "$before" ] || say "$name: $state"
    before=$state
    if [ "$SECONDS" -ge "$end" ]; then
      say "$name was not ready within $hours hours (--hours): the request is withdrawn"
      finish "$RESUMABLE"
    fi
    pause "$LOOK"
  done
}

# on_workers all|NUMBER FUNCTION [ARGUMENT...]: calls a function of on_worker.sh there.
on_workers() {
  local which=$1 command
  shift
  # shellcheck disable=SC2016  # for the worker's shell
  printf -v command ' %q' "$(declare -f "${TO_SEND[@]}")"$'\n"$@"' worker "$@"
  tpu tpu-vm ssh "$name" --worker="$which" --ssh-flag=-oServerAliveInterval=30 \
    --command="bash -c$command" </dev/null
}

# Runs a command in a process group of its own, to be waited for or ended.
begin() {
  set -m
  "$@" &
  set +m
  group=$!
}

await() {
  local code
  while true; do
    code=0
    wait "$group" || code=$?
    kill -0 "$group" 2>/dev/null || break # else a signal broke the waiting off
  done
  group=''
  return "$code"
}

end_group() {
  [ -z "$group" ] || kill -TERM -- "-$group" 2>/dev/null || true
}

# Before every start: a machine that was started anew has lost its mounts.
prepare_workers() {
  local code try
  [ -f "$folder/astrollava_jax.tar.gz" ] || pack || return 1
  mark=$storage/.astrollava_launch/$name/$(date +%s)-$RANDOM
  say "installs on all workers of $name, where it is not installed yet"
  for try in 1 2 3; do
    code=0
    begin install
    await || code=$?
    if [ "$code" -eq 0 ]; then
      was_prepared=yes may_cost=yes found=''
      return 0
    fi
    [ "$(machine)" = ready ] || return "$RESUMABLE"
    say "the installation ended with $code (try $try of 3); what was said of it stands above"
    [ "$code" -ne "$MISTAKE" ] || return "$MISTAKE"
    pause "$PAUSE"
  done
  first_or_again "$was_prepared"
}

pack() {
  local file
  (
    cd "$checkout"
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
      [ ! -e "$file" ] || printf '%s\0' "$file"
    done >"$folder/files"
    tar --null -T "$folder/files" -czf "$folder/astrollava_jax.tar.gz"
  )
}

install() {
  tpu tpu-vm scp "$folder/astrollava_jax.tar.gz" "$name:" --worker=all </dev/null &&
    on_workers all prepare "$storage" "$mount" "$setup" "$run" "${run_words[@]:1}" &&
    on_workers 0 mark "$mark"
}

attend_workers() {
  local start log state code=0
  start=start-$(date +%s)-$RANDOM
  log=$folder/$start.log
  say "starts; what is said is kept in $log"
  attended=yes
  begin attend_into "$log" "$start" "$mark" "$work" "$run" "${run_words[@]:1}"
  while kill -0 "$group" 2>/dev/null; do
    pause "$LOOK"
    state=$(machine)
    if [ "$state" = gone ] || [ "$state" = none ]; then
      say "$name is gone: preempted"
      end_group
    fi
  done
  await || code=$?
  verdict "$log" "$code"
}

attend_into() {
  local log=$1
  shift
  on_workers all attend "$@" 2>&1 | tee "$log"
}

# verdict LOG CODE: of a start. gcloud gives the code of the first worker that failed, which may be
# 75 where another has a 2, and no code at all in older releases: the workers' own words decide.
verdict() {
  local worker code ends='' gcloud_code=$2
  while read -r worker code; do
    ends=${ends:-complete}
    [ "$code" -eq 0 ] || ends=stopped
    if [ "$code" -ne 0 ] && ! resumable "$code"; then
      say "worker $worker ended with $code; its last lines:"
      sed -n "s/^worker $worker: /  /p" "$1" >&2
      return "$code"
    fi
  done < <(sed -n 's/^worker \([0-9]*\) ended with \([0-9]*\)$/\1 \2/p' "$1" | sort -k2n)
  [ "$ends" != complete ] || [ "$gcloud_code" -ne 0 ] || return 0
  return "$RESUMABLE"
}

delete() {
  local try
  for try in 1 2 3; do
    if tpu queued-resources delete "$name" --force || [ "$(machine)" = none ]; then
      say "$name is deleted"
      may_cost=''
      return 0
    fi
    say "$name could not be deleted (try $try of 3)"
    pause "$PAUSE"
  done
  return 1
}

# finish CODE: leaves nothing that costs, unless it was asked for.
finish() {
  trap '' INT TERM HUP
  if [ -n "$may_cost" ] && [ -n "$keep" ] && [ "$(machine)" = ready ]; then
    say "$name is left there, as asked (--keep), and costs until: $(to_delete)"
    may_cost=''
  elif [ -n "$may_cost" ]; then
    delete || true
  elif [ -n "$found" ]; then
    say "$name is left as it was found, and costs until: $(to_delete)"
  fi
  exit "$1"
}

last_words() {
  [ -z "$may_cost" ] || say "$name MAY STILL BE THERE, AND COST. To delete it: $(to_delete)"
}

interrupted() {
  asked_at=$SECONDS
  trap interrupted_again INT TERM HUP
  say "asked to stop"
  end_group
  if [ -z "$keep" ] && [ -n "$attended" ]; then
    say "the run saves its step, then $name is deleted; Ctrl-C once more does not wait for that"
    begin on_workers all ask_to_stop "$SAVE_SECONDS"
    await || true
  fi
  finish "$RESUMABLE"
}

# bash may tell of one Ctrl-C twice: its own, and that of the program it waited for.
interrupted_again() {
  [ $((SECONDS - asked_at)) -lt 2 ] || end_group
}

main() {
  local code=0
  read_options "$@"
  check
  folder=$(mktemp -d "${TMPDIR:-/tmp}/astrollava-launch.XXXXXX")
  trap '' PIPE # a terminal or a pipe that is gone is no reason to leave a machine there
  trap last_words EXIT
  trap interrupted INT TERM HUP
  again start_once || code=$?
  finish "$code"
}

main "$@"
