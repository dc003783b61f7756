#!/usr/bin/env bash
# Starts a command again as long as it ends with 75 (stopped, resumable) or is killed by a signal.
#
#   launch/again.sh astrollava train RUN.yaml       # on one machine, with or without GPUs
#
# It ends with the command's exit code: 0 is complete; 2 a mistake that the command names, and 1
# anything else, are not started again. 75: the limit of starts was reached, or this script was
# asked to stop (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1), which it tells the command, whose end it awaits.
#
#   ASTROLLAVA_STARTS=100   how often the command is started at most
#   ASTROLLAVA_PAUSE=10     seconds before the next start; doubled, up to 600, after each one that
#                           ended within ten minutes
#
# `source launch/again.sh` gives the functions `again`, `resumable`, `say` and `pause`.

STARTS=${ASTROLLAVA_STARTS:-100}
PAUSE=${ASTROLLAVA_PAUSE:-10}
LONGEST_PAUSE=600
QUICK_SECONDS=600

RESUMABLE=75
MISTAKE=2

# Tells it, if there still is somebody.
say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2 || true
}

# Sleeps so that a signal is answered at once; what sleeps on then holds no output.
pause() {
  sleep "$1" >/dev/null 2>&1 &
  wait $! || true
}

# Whether what ended with this code goes on when it is started again.
resumable() {
  [ "$1" -eq "$RESUMABLE" ] || [ "$1" -gt 128 ]
}

# again FUNCTION [ARGUMENT...]: calls it until it ends with something else than 75 or a signal.
again() {
  local start=1 code began seconds=$PAUSE
  while true; do
    began=$SECONDS
    code=0
    "$@" || code=$?
    if ! resumable "$code"; then
      [ "$code" -eq 0 ] || say "ended with $code: mend what it says, then start again"
      return "$code"
    fi
    if [ "$start" -ge "$STARTS" ]; then
      say "ended with $code at start $start, the last that is allowed (ASTROLLAVA_STARTS=$STARTS)"
      return "$RESUMABLE"
    fi
    [ $((SECONDS - began)) -lt "$QUICK_SECONDS" ] || seconds=$PAUSE
    start=$((start + 1))
    say "ended with $code; start $start of at most $STARTS in $seconds seconds"
    pause "$seconds"
    seconds=$(longer "$seconds")
  done
}

longer() {
  awk -v one="$1" -v most="$LONGEST_PAUSE" 'BEGIN { print (2 * one < most) ? 2 * one : most }'
}

# Runs a command in a process group of its own, so that a signal from the terminal comes to this
# script alone, which passes it on: the command hears each of them once.
passing_signals() {
  local code=0 before
  "$@" &
  command_process=$!
  passed=''
  wait "$command_process" || code=$?
  while [ -n "$passed" ]; do # the signal broke the waiting off
    passed='' before=$code code=0
    wait "$command_process" || code=$?
    [ "$code" -ne 127 ] || code=$before # there is nothing to wait for any more
  done
  command_process=''
  if [ -n "$asked" ]; then
    say "asked to stop by SIG$asked; the command ended with $code"
    exit "$code"
  fi
  return "$code"
}

pass_on() {
  asked=$1 passed=yes
  if [ -z "$command_process" ]; then
    say "asked to stop by SIG$asked between two starts"
    exit "$RESUMABLE"
  fi
  kill -s "$asked" "$command_process" 2>/dev/null || true
}

main() {
  case ${1-} in
    '' | --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      [ $# -gt 0 ] || exit "$MISTAKE"
      exit 0
      ;;
  esac
  asked='' command_process='' passed=''
  for signal in INT TERM HUP USR1; do
    # shellcheck disable=SC2064  # the name of now
    trap "pass_on $signal" "$signal"
  done
  set -m
  again passing_signals "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  main "$@"
fi
