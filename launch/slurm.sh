#!/usr/bin/env bash
# Runs one `dicetalk` command as a Slurm job. Submit it from the checkout, which all nodes see at the same path:
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh train adaptation --config configs/adaptation_512.py --out run
# One task per node with all of its GPUs, or one task per GPU with --ntasks-per-node=8. Nothing in between: JAX gives a
# task either the GPU of its number or, here, all.
#SBATCH --job-name=dicetalk
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# Requeue the job when a node is lost, and append to its output file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Signal the job five minutes before its time limit, so that it can save.
#SBATCH --signal=B:USR1@300
set -euo pipefail
if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch [SBATCH_OPTION...] $0 VERB [OPTION...]" >&2
  exit 2
fi
# Slurm runs a copy of this file, in the folder of the submission.
export PATH="$PWD/.venv/bin:$PATH"
if [ "${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}" -eq "$SLURM_JOB_NUM_NODES" ] && [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# A task that dies ends the others. Threads may use all cores of their node.
srun --kill-on-bad-exit=1 --cpu-bind=none --label dicetalk "$@" &
step=$!
# Near the time limit, SIGTERM makes each task finish its step, save, and exit with 75. It goes to the tasks: srun itself
# would kill them. A signal ends `wait`, not srun.
over='' signalled=''
trap 'over=yes signalled=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
code=0
wait "$step" || code=$?
while [ -n "$signalled" ]; do
  signalled='' code=0
  wait "$step" || code=$?
done
# Requeue a job that saved because of its time limit (75) or was killed by a signal (out of memory, a crash): it continues
# from the newest checkpoint. A job that ends with an error message, or that was stopped by hand, stays ended.
if { [ -n "$over" ] && [ "$code" -eq 75 ]; } || { [ "$code" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
