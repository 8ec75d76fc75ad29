#!/usr/bin/env bash
# Installs this checkout on every host of a TPU (a single VM or a pod slice) and runs one `dicetalk` command on all of
# them, from the checkout's folder:
#   launch/tpu.sh NAME ZONE generate --image me.jpg --audio speech.wav --emotion happy --out me.mp4 --weights weights/
#   launch/tpu.sh NAME ZONE train adaptation --config configs/adaptation_512.py --set mesh.fsdp=8 --out /shared/run
# Needs gcloud, logged in, and for several hosts a key in ssh-agent (ssh-add ~/.ssh/google_compute_engine). Files that the
# command names must exist on every host: encoded sets, weights and the run on a disk that all have mounted. The same
# command continues a run that ended from its newest checkpoint.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 NAME ZONE VERB [OPTION...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)

everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"; }

# Tracked files only: weights and videos of this machine stay here.
archive=$(mktemp -d)
trap 'rm -r "$archive"' EXIT
git -C "$here" archive --prefix=dicetalk_jax/ --output "$archive/dicetalk_jax.tar" HEAD
gcloud compute tpus tpu-vm scp "$archive/dicetalk_jax.tar" "$name:" --zone "$zone" --worker all
everywhere "tar xf dicetalk_jax.tar && cd dicetalk_jax && python3 -m venv .venv &&
  .venv/bin/pip install --quiet -r requirements-tpu.txt"
# JAX asks the TPU for the other hosts.
everywhere "cd dicetalk_jax && DICETALK_HOSTS=auto .venv/bin/dicetalk $(printf '%q ' "$@")"
