#!/usr/bin/env bash
# What a container of the Kubernetes manifests runs: the `dicetalk` line of its arguments. A pod that must leave its
# node gets SIGTERM; dicetalk then saves and ends with 0. A Job would take that for finished and never go on: so this
# ends with 143, and the JobSet starts all of them again.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: $0 VERB [OPTION...]" >&2
  exit 2
fi
dicetalk "$@" &
child=$!
stopped='' told=yes
trap 'stopped=yes told=yes; kill -TERM "$child" 2> /dev/null || true' TERM
# A signal ends `wait`, not what it waits for.
while [ -n "$told" ]; do
  told='' code=0
  wait "$child" || code=$?
done
[ -z "$stopped" ] || exit 143
exit "$code"
