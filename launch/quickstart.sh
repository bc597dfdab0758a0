#!/usr/bin/env bash
# `make quickstart`: the whole job at small scale, as the commands that you would use on a real model.
# Settings from the environment: RUN (folder), SEED, PROCESSES (ranks; default one on a GPU machine, else one per core
# up to two), DEMONSTRATIONS (how many to imitate), MIX (`plain`, or `code` for functions to write as well; its recipe
# is launch/recipes/quickstart-code.toml). Arguments are overrides of the recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN=${RUN:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
SEED=${SEED:-1}
DEMONSTRATIONS=${DEMONSTRATIONS:-16000}
MIX=${MIX:-plain}
RECIPE=launch/recipes/quickstart$([ "$MIX" = plain ] || echo "-$MIX").toml
if [ -z "${PROCESSES:-}" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        PROCESSES=1
    else
        PROCESSES=$(($(nproc) >= 2 ? 2 : 1))
    fi
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more threads than cores is ruinous
export PYTHONUNBUFFERED=1
export PATH="$PWD/.venv/bin:$PATH"

step() {
    printf '\n\033[1m%s\033[0m\n$ %s\n' "$1" "${*:2}"
    "${@:2}"
}

started=$SECONDS
step "1. A tiny random model, demonstrations by a sloppy teacher, and prompts with checkable answers" \
    python -m sft_dpo quickstart-task "$RUN/task" --seed "$SEED" --demonstrations "$DEMONSTRATIONS" --mix "$MIX"
step "2. Supervised fine-tuning: the starting policy" \
    torchrun --standalone --nproc-per-node "$PROCESSES" -m sft_dpo sft launch/recipes/quickstart-sft.toml \
    model.path="$RUN/task/model" data.train="$RUN/task/demonstrations.jsonl" run_dir="$RUN/sft" seed="$SEED"
step "3. RLVR: PPO with a critic against verifiers, rollouts by vLLM" \
    torchrun --standalone --nproc-per-node "$PROCESSES" -m rlvr train "$RECIPE" \
    model.path="$RUN/sft/model" data.train="$RUN/task/train.jsonl" data.eval="$RUN/task/heldout.jsonl" \
    run_dir="$RUN/rlvr" seed="$SEED" "$@"
step "4. What it learnt" \
    python -m rlvr report "$RUN/rlvr"
printf '\nquickstart took %d s\n' $((SECONDS - started))
