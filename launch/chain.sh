#!/usr/bin/env bash
# `make chain`: everything that makes a policy, at small scale: SFT -> preferences -> DPO -> reward model -> PPO.
# Settings from the environment: RUN (folder), SEED, PROCESSES (ranks; default one on a GPU machine, else one per core
# up to two), DEMONSTRATIONS (how many to imitate), PROMPTS (how many to make pairs of), RESULT (where the table goes as
# JSON). Arguments are overrides of the last recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN=${RUN:-runs/chain-$(date +%Y%m%d-%H%M%S)}
SEED=${SEED:-1}
DEMONSTRATIONS=${DEMONSTRATIONS:-16000}
PROMPTS=${PROMPTS:-1600}
RESULT=${RESULT:-$RUN/chain.json}
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
    local began=$SECONDS
    "${@:2}"
    printf '(%d s)\n' $((SECONDS - began))
}
ranks() { echo torchrun --standalone --nproc-per-node "$PROCESSES" -m; }

started=$SECONDS
step "0. A tiny random model, demonstrations by a sloppy teacher, and prompts with checkable answers" \
    python -m sft_dpo quickstart-task "$RUN/task" --seed "$SEED" --demonstrations "$DEMONSTRATIONS"
step "1. Supervised fine-tuning" \
    $(ranks) sft_dpo sft launch/recipes/chain-sft.toml seed="$SEED" run_dir="$RUN/sft" \
    model.path="$RUN/task/model" data.train="$RUN/task/demonstrations.jsonl"
step "2. Preference pairs from verdicts on the policy's own completions" \
    $(ranks) sft_dpo preferences launch/recipes/chain-preferences.toml seed="$SEED" run_dir="$RUN/preferences" \
    model.path="$RUN/sft/model" data.train.path="$RUN/task/train.jsonl" data.train.count="$PROMPTS" \
    data.eval="$RUN/task/heldout.jsonl"
step "   and of the held-out prompts, to measure on" \
    $(ranks) sft_dpo preferences launch/recipes/chain-preferences.toml seed="$SEED" run_dir="$RUN/heldout_pairs" \
    model.path="$RUN/sft/model" data.train="$RUN/task/heldout.jsonl" data.eval=[] pairing.pairs_per_prompt=1
step "3. Length-normalised DPO" \
    $(ranks) sft_dpo dpo launch/recipes/chain-dpo.toml seed="$SEED" run_dir="$RUN/dpo" model.path="$RUN/sft/model" \
    data.train="$RUN/preferences/pairs.jsonl" data.eval="$RUN/heldout_pairs/pairs.jsonl" \
    preference.reference_cache="$RUN/reference_logprobs"
step "4. A reward model" \
    $(ranks) sft_dpo reward launch/recipes/chain-reward.toml seed="$SEED" run_dir="$RUN/reward" \
    model.path="$RUN/sft/model" data.train="$RUN/preferences/pairs.jsonl" data.eval="$RUN/heldout_pairs/pairs.jsonl"
step "5. RLVR: PPO from the tuned policy, its critic from the reward model" \
    $(ranks) rlvr train launch/recipes/chain.toml seed="$SEED" run_dir="$RUN/rlvr" model.path="$RUN/dpo/model" \
    critic.init="$RUN/reward/model" data.train="$RUN/task/train.jsonl" data.eval="$RUN/task/heldout.jsonl" "$@"
step "6. What each stage added" \
    python -m benchmarks.chain "$RUN" --seconds $((SECONDS - started)) --output "$RESULT"
