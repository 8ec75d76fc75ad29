#!/usr/bin/env bash
# Runs one `dicetalk` command as processes of Open MPI (4 or 5), one per GPU. MPI only starts them; JAX connects them:
#   launch/mpi.sh -n 16 --hostfile hosts --map-by ppr:8:node -- train adaptation --config configs/adaptation_512.py
# Every host has this checkout at the same path. Start it on the host of process 0, the first of the hostfile, or set
# JAX_COORDINATOR_ADDRESS=HOST:PORT of that host. For one process per host, with all of its GPUs:
#   JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 launch/mpi.sh -n 2 --hostfile hosts --map-by ppr:1:node -- ...
# SIGTERM and Ctrl-C save, and it exits with 75; the same command continues the run.
set -euo pipefail
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if [ $# -lt 2 ]; then
  echo "usage: $0 [MPIRUN_OPTION...] -- VERB [OPTION...]" >&2
  exit 2
fi
shift
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH"
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-$(hostname):$((20000 + RANDOM % 10000))}
# Open MPI passes only named variables to other hosts.
for name in $(compgen -e); do
  case $name in
    PATH | LD_LIBRARY_PATH | JAX_* | DICETALK_* | XLA_* | NCCL_* | TF_CPP_*) options+=(-x "$name") ;;
  esac
done

# JAX recognises only Open MPI 4, so each process gets its index here. Without --bind-to none it would have one core or
# socket for all of its threads. After SIGTERM mpirun gives its processes one second, too little to save, but it passes
# SIGUSR1 on, so that requests the save. A signal ends `wait`, not the process that it waits for.
# shellcheck disable=SC2016 # each process expands it
mpirun --bind-to none "${options[@]}" bash -c '
  export JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK
  export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$OMPI_COMM_WORLD_LOCAL_RANK}
  (trap "" USR1 && exec dicetalk "$@") &
  signalled=yes
  trap "signalled=yes; kill -TERM $!" TERM USR1
  while [ -n "$signalled" ]; do signalled="" code=0; wait $! || code=$?; done
  exit $code' dicetalk "$@" &
signalled=yes
trap 'signalled=yes; kill -USR1 $!' TERM INT
while [ -n "$signalled" ]; do
  signalled='' code=0
  wait $! || code=$?
done
exit "$code"
