#!/usr/bin/env bash
# Installs this checkout on a TPU VM and runs one `dicetalk` line there, from the checkout's folder:
#   launch/tpu_vm.sh NAME ZONE generate --image me.jpg --audio speech.wav --emotion happy --out me.mp4 --weights weights/
# Needs gcloud, logged in. Files that the line names must be on the VM already (gcloud compute tpus tpu-vm scp).
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 NAME ZONE VERB [OPTION...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)

remote() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --command "$1"; }

# Tracked files alone: the weights and videos of this machine stay here.
git -C "$here" archive --prefix=dicetalk_jax/ HEAD | gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --command "tar x"
remote "cd dicetalk_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements-tpu.txt"
remote "cd dicetalk_jax && .venv/bin/dicetalk $(printf '%q ' "$@")"
