#!/usr/bin/env bash
# One machine, one process per GPU (or GPUS processes): launch/single_node.sh RECIPE [a.b=value ...]
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" -m rlvr train "$@"
