#!/usr/bin/env bash
# Runs one `dicetalk` line as a Slurm job; sent from the checkout's folder, which all nodes see at the same path:
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh train adaptation --config configs/adaptation_512.py --out run
# One task a node, which has all of its GPUs; --ntasks-per-node=8 for one task a GPU. Nothing between the two: JAX gives
# a task either the GPU of its number or, here, all.
#SBATCH --job-name=dicetalk
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# A lost node puts the job back into the queue; what was said before stays in its file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Five minutes before its time is over the job is told, and has them to save.
#SBATCH --signal=B:USR1@300
set -euo pipefail
if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch [SBATCH_OPTION...] $0 VERB [OPTION...]" >&2
  exit 2
fi
# Slurm runs a copy of this file, from the folder in which it was sent.
export PATH="$PWD/.venv/bin:$PATH"
if [ "${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}" -eq "$SLURM_JOB_NUM_NODES" ] && [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# A task that dies ends the others. All cores of a node are for whichever thread wants one.
srun --kill-on-bad-exit=1 --cpu-bind=none --label dicetalk "$@" &
step=$!
# Time is nearly over: SIGTERM makes each task finish its step, save, and end with 0. It goes to the tasks; srun, given
# it, would kill them. A signal ends `wait`, not srun.
over='' told=''
trap 'over=yes told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
code=0
wait "$step" || code=$?
while [ -n "$told" ]; do
  told='' code=0
  wait "$step" || code=$?
done
# Saved because time was over, or killed by a signal (out of memory, a crash): the job goes on in its next turn, from
# the newest checkpoint. What ends with a message ends for good.
if { [ -n "$over" ] && [ "$code" -eq 0 ]; } || { [ "$code" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
