"""Figures of a rollout benchmark: tokens/s of each contestant, and the phases of a step."""

from __future__ import annotations

from typing import Any

from benchmarks.rollout_summary import PHASES
from rlvr.report_page import png, pyplot


def plot(result: dict[str, Any]) -> bytes:
    """A PNG. Raises ConfigError without matplotlib."""
    figure, (rates, phases) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for at, (name, value) in enumerate(result["tokens_per_second"].items()):
        below, above = value["median"] - value["min"], value["max"] - value["median"]
        rates.bar(at, value["median"], yerr=[[below], [above]], capsize=4, label=name)
    rates.set_xticks(range(len(result["tokens_per_second"])), list(result["tokens_per_second"]))
    rates.set_ylabel("tokens/s, all ranks (median, extremes)")
    left = 0.0
    for name in PHASES:
        seconds = result["seconds"].get(name, {"median": 0.0})["median"]
        if seconds:
            phases.barh(0, seconds, left=left, label=f"{name} {seconds:.3g} s")
            left += seconds
    phases.set_yticks([])
    phases.set_xlabel("seconds of a step")
    phases.legend(loc="upper center", ncols=3, fontsize="small")
    phases.set_ylim(-0.5, 1.5)
    shape = result["shape"] or result["recipe"]
    figure.suptitle(
        f"{shape}, {result['lengths']} lengths, {result['ranks']} rank(s), {result['versions']['processor']}"
    )
    return png(figure)
