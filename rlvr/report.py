"""A run's results as text: before and after by verifier, where the time went, and where to look further."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr.errors import RunDirectoryError
from rlvr.log import STAGES, read_metrics
from rlvr.run_directory import RunDirectory


def report(run_dir: str | pathlib.Path) -> str:
    """Read `metrics.jsonl` and describe the run.

    Raises RunDirectoryError when the folder holds no run, or none that has logged a step.
    """
    run = RunDirectory(run_dir)
    if not run.metrics.is_file():
        raise RunDirectoryError(f"{run.path} holds no metrics.jsonl: it is not a run, or one that has not begun.")
    lines = read_metrics(run.metrics)
    steps = [line for line in lines if line["step"] > 0]
    if not steps:
        raise RunDirectoryError(f"{run.path} has not finished a step yet.")
    sections = [*evaluation_tables(lines), _learning(steps), _time(lines, steps), _ledger(run), _places(run)]
    return "\n\n".join(section for section in sections if section)


def evaluation_tables(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One table for each held-out set: before and after, over all and by verifier."""
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    if not evaluated:
        return
    before, after = evaluated[0], evaluated[-1]
    sets = dict.fromkeys(name.split("/")[1] for name in before if name.startswith("eval/"))
    for name in sets:
        prefix = f"eval/{name}"
        own = [key.removeprefix(f"{prefix}/") for key in before if key.startswith(f"{prefix}/")]
        parts = [key.rpartition("/")[0] for key in own if "/" in key]  # a verifier "rules/my.py:Attr" has one too
        title = f"held-out set `{name}`, {before[f'{prefix}/prompts']:.0f} prompts"
        rows = [(title, f"step {before['step']}", f"step {after['step']}")]
        for part in [None, *dict.fromkeys(parts)]:
            at = prefix if part is None else f"{prefix}/{part}"
            for key, label in _measures(before, at):
                shown = f"  {label}" if part is None else f"  {part}: {label}"
                rows.append((shown, _percent(before, f"{at}/{key}"), _percent(after, f"{at}/{key}")))
        yield _table(rows)


def _measures(line: Mapping[str, Any], at: str) -> list[tuple[str, str]]:
    ends = {key.removeprefix(f"{at}/pass_at_") for key in line if key.startswith(f"{at}/pass_at_")}
    more = [(f"pass_at_{k}", f"pass@{k}") for k in sorted(int(end) for end in ends if end.isdigit()) if k > 1]
    return [("pass_at_1", "pass@1, sampled"), ("pass_at_1_greedy", "pass@1, greedy"), *more]


def _percent(line: Mapping[str, Any], key: str) -> str:
    value, half_width = line.get(key), line.get(f"{key}_ci95")
    if value is None:
        return "-"
    return f"{value:.1%}" if half_width is None else f"{value:.1%} ± {100 * half_width:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _learning(steps: Sequence[Mapping[str, Any]]) -> str:
    """First and last tenth of the run: the training curve in one line each."""
    size = max(len(steps) // 10, 1)
    keys = {
        "reward/mean": "reward",
        "rollout/groups_without_signal": "groups without signal",
        "rollout/length_mean_tokens": "length",
        "rollout/truncated": "truncated",
        "policy/kl_reference": "KL to reference",
        "policy/kl_sampler": "KL to sampler",
        "policy/entropy": "entropy",
    }
    rows = [("training (mean)", f"first {size} steps", f"last {size} steps")]
    for key, label in keys.items():
        if steps[0].get(key) is not None:
            first = statistics.fmean(line[key] for line in steps[:size])
            last = statistics.fmean(line[key] for line in steps[-size:])
            rows.append((f"  {label}", f"{first:.3g}", f"{last:.3g}"))
    return _table(rows)


def _time(lines: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> str:
    total = sum(line["time/step_seconds"] for line in steps)
    shares = {name: sum(line.get(f"time/{name}_seconds", 0.0) for line in steps) / total for name in STAGES}
    median = statistics.median(line["time/step_seconds"] for line in steps)
    rate = statistics.median(line["rollout/tokens_per_second"] for line in steps)
    proof = sum(line.get("sync/proof_seconds", 0.0) for line in steps) / total
    idle = sum(line.get("rollout/idle_while_scoring_seconds", 0.0) for line in steps) / total
    evaluating = sum(line.get("time/evaluate_seconds", 0.0) for line in lines)
    stages = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
        f"time: {len(steps)} steps in {total:.0f} s (median {median:.2f} s: {stages}; proof of sync {proof:.1%}), "
        f"evaluation {evaluating:.0f} s; sampler {rate:,.0f} tokens/s, idle while scoring {idle:.1%} of the time"
    )


def _ledger(run: RunDirectory) -> str:
    if not run.ledger.is_file():
        return ""
    ledger = json.loads(run.ledger.read_text())
    return "ledger: " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in ledger.items())


def _places(run: RunDirectory) -> str:
    return f"run directory: {run.path}  (metrics.jsonl, samples/, tensorboard/, checkpoints/, model/)"
