#!/usr/bin/env bash
# Everything that needs one CUDA GPU, in order of worth, so that an interrupted run has measured the most: the GPU tests,
# a colocated PPO run, then the benchmarks at 0.5 B and 1.5 B shapes (random weights). About 40 minutes on an H100.
#
#     benchmarks/gpu.sh RESULTS          # JSON and logs go to the folder RESULTS
#     STEPS="tests rollout" benchmarks/gpu.sh RESULTS
set -uo pipefail
results=${1:?usage: benchmarks/gpu.sh RESULTS}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$results"
steps=${STEPS:-tests quickstart learner head rollout sweep}
recipe=launch/recipes/quickstart.toml
failed=()

run() { # NAME COMMAND...: a failure is named at the end and does not stop the others
    local name=$1 started=$SECONDS
    shift
    echo "== $name: $*"
    if "$@" >"$results/$name.log" 2>&1; then
        echo "   $((SECONDS - started)) s"
    else
        echo "   FAILED ($?), see $results/$name.log"
        tail -n 5 "$results/$name.log"
        failed+=("$name")
    fi
}

for step in $steps; do
    case $step in
    tests) run tests python -m pytest -m gpu ;;
    quickstart) run quickstart env RUN="$results/quickstart" PROCESSES=1 bash launch/quickstart.sh ;;
    learner)
        for shape in 0.5b 1.5b; do
            run "learner_$shape" python -m benchmarks.learner --shape "$shape" --dtype bfloat16 --zero 1 --row-tokens 8192 \
                --checkpointing off on --output "$results/learner_$shape.json"
        done
        ;;
    head) run head python -m benchmarks.head --dtype bfloat16 --repeat 3 --output "$results/head.json" ;;
    rollout)
        for shape in 0.5b 1.5b; do
            run "rollout_$shape" python -m benchmarks.rollout "$recipe" --shape "$shape" --lengths gsm8k --against raw learner \
                --output "$results/rollout_$shape.json" model.dtype=bfloat16 sampler.enforce_eager=false sampler.sleep=true
        done
        ;;
    sweep)
        run sweep python -m benchmarks.rollout "$recipe" --shape 0.5b --lengths gsm8k --repeats 2 \
            --sweep sampler.max_num_seqs=128,512 sampler.enforce_eager=true,false --output "$results/sweep.json" model.dtype=bfloat16
        ;;
    *) echo "unknown step $step" >&2; exit 2 ;;
    esac
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
