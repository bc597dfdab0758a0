"""What each stage of `make chain` added: held-out pass@1 of the policies, held-out accuracy of pairs, and time.

make chain
RUN=runs/chain RESULT=benchmarks/results/chain.json make chain     # the committed result
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from benchmarks.machine import about
from rlvr.log import read_metrics

HELD_OUT = "eval/heldout"
MEASURES = ("pass_at_1", "pass_at_1_ci95", "pass_at_1_greedy", "pass_at_1_greedy_ci95")


def describe(run: pathlib.Path) -> dict[str, Any]:
    """Numbers of every stage of a finished chain."""
    lines = {
        name: read_metrics(run / name / "metrics.jsonl") for name in ("sft", "preferences", "dpo", "reward", "rlvr")
    }
    evaluated = [line for line in lines["rlvr"] if f"{HELD_OUT}/pass_at_1" in line]
    policies = {"SFT": lines["preferences"][0], "DPO": evaluated[0], "PPO, critic from the RM": evaluated[-1]}
    pairs = {name: [line for line in lines[name] if "eval/pairs/accuracy" in line] for name in ("dpo", "reward")}
    statistics = json.loads((run / "preferences" / "statistics.json").read_text())
    return {
        "policies": {
            name: {key: round(line[f"{HELD_OUT}/{key}"], 4) for key in MEASURES} for name, line in policies.items()
        },
        "prompts": int(evaluated[0][f"{HELD_OUT}/prompts"]),
        "pairs": {
            "preferences": {key: statistics[key] for key in ("prompts", "prompts_by_fate", "completions", "pairs")},
            **{
                name: {
                    f"{when} {metric}": round(line[f"eval/pairs/{metric}"], 4)
                    for when, line in (("before", own[0]), ("after", own[-1]))
                    for metric in ("loss", "accuracy", "margin")
                }
                for name, own in pairs.items()
            },
        },
        "sft_loss": [round(lines["sft"][place]["loss"], 4) for place in (0, -1)],
        "ppo": {
            "steps": sum(line["step"] > 0 for line in lines["rlvr"]),
            "value_explained_variance_first_step": next(
                round(line["value/explained_variance"], 3) for line in lines["rlvr"] if line["step"] == 1
            ),
        },
    }


def table(result: dict[str, Any]) -> str:
    """The policies, a line each, and what was measured of the pairs."""
    title = f"held-out, {result['prompts']} prompts"
    rows = [f"{title:<34}{'pass@1, sampled':>16}{'pass@1, greedy':>16}"]
    for name, found in result["policies"].items():
        sampled, sampled_ci95, greedy, greedy_ci95 = (f"{found[key]:.1%}" for key in MEASURES)
        rows.append(f"  after {name:<26}{f'{sampled} ± {sampled_ci95}':>16}{f'{greedy} ± {greedy_ci95}':>16}")
    made = result["pairs"]["preferences"]
    rows.append(f"{made['pairs']} pairs from {made['completions']} completions of {made['prompts']} prompts")
    for name, label in (("dpo", "DPO's rewards"), ("reward", "reward model")):
        found = result["pairs"][name]
        before, after = found["before accuracy"], found["after accuracy"]
        rows.append(f"  {label}: held-out pairs ranked right {before:.1%} -> {after:.1%}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, required=True, help="wall clock of the whole chain")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    result = {
        "what": "make chain, after set-up",
        "seconds": arguments.seconds,
        **about(),
        **describe(arguments.run),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{table(result)}\nthe chain took {arguments.seconds} s; result: {arguments.output}")


if __name__ == "__main__":
    main()
