#!/usr/bin/env bash
# Several machines: run the same line on each, with HEAD naming one of them and NODES how many there are.
#   HEAD=10.0.0.1 NODES=2 launch/multi_node.sh RECIPE [a.b=value ...]
set -euo pipefail
# after a stop, a step may take this long to finish and be saved before torchrun kills it (its own default: 30)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}
exec torchrun --nnodes "${NODES:?}" --nproc-per-node "${GPUS:-gpu}" --rdzv-backend c10d --rdzv-id "${RUN_ID:-rlvr}" \
    --rdzv-endpoint "${HEAD:?}:${PORT:-29500}" -m rlvr train "$@"
