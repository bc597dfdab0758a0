#!/usr/bin/env bash
# One machine, one process per GPU (or GPUS processes): launch/single_node.sh RECIPE [a.b=value ...]
set -euo pipefail
# after a stop, a step may take this long to finish and be saved before torchrun kills it (its own default: 30)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" -m rlvr train "$@"
