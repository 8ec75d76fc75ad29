#!/usr/bin/env bash
# Runs one `dicetalk` line as processes of Open MPI (4 or 5), one a GPU. MPI only starts them, JAX connects them:
#   launch/mpi.sh -n 16 --hostfile hosts --map-by ppr:8:node -- train adaptation --config configs/adaptation_512.py
# Every host has this checkout at the same path. Start it on the host that gets process 0, the first of the hostfile, or
# say in JAX_COORDINATOR_ADDRESS=HOST:PORT where that is. For one process a host, with all of its GPUs:
#   JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 launch/mpi.sh -n 2 --hostfile hosts --map-by ppr:1:node -- ...
# SIGTERM and Ctrl-C save, and it ends with 0. Nothing starts a run again by itself: the same line goes on.
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
# Open MPI gives other hosts only the variables that it is told.
for name in $(compgen -e); do
  case $name in
    PATH | LD_LIBRARY_PATH | JAX_* | DICETALK_* | XLA_* | NCCL_* | TF_CPP_*) options+=(-x "$name") ;;
  esac
done

# JAX finds out who it is under Open MPI 4 alone, so each process is told. Without --bind-to none it would have one core
# or one socket for all of its threads. mpirun gives its processes one second after SIGTERM, too little to save in, but
# just passes SIGUSR1 on, so that is what asks them to. A signal ends `wait`, not what it waits for.
# shellcheck disable=SC2016 # each process expands it
mpirun --bind-to none "${options[@]}" bash -c '
  export JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK
  export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$OMPI_COMM_WORLD_LOCAL_RANK}
  (trap "" USR1 && exec dicetalk "$@") &
  told=yes
  trap "told=yes; kill -TERM $!" TERM USR1
  while [ -n "$told" ]; do told="" code=0; wait $! || code=$?; done
  exit $code' dicetalk "$@" &
told=yes
trap 'told=yes; kill -USR1 $!' TERM INT
while [ -n "$told" ]; do
  told='' code=0
  wait $! || code=$?
done
exit "$code"
