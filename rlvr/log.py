"""Metrics: one JSON line a step is the source of truth; TensorBoard and the console are views of it."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlvr import watch
from rlvr.records import Scored
from rlvr.run_directory import RunDirectory

MAX_FAILED_GROUPS = 16
STAGES = ("rollout", "verify", "update", "sync")


class Clock:
    """Seconds spent in each named stage of one step, which is also where an error says that a rank hangs."""

    def __init__(self, step: int = 0) -> None:
        self.seconds: dict[str, float] = {}
        self._step = step
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        watch.at(f"step {self._step}, {name}")
        yield
        watch.at(f"step {self._step}, after {name}")
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """`time/<stage>_seconds`, and `time/step_seconds` since the clock was made."""
        stages = {f"time/{name}_seconds": seconds for name, seconds in self.seconds.items()}
        return stages | {"time/step_seconds": time.perf_counter() - self._started}


class MetricsLog:
    """Written by one rank."""

    def __init__(self, run: RunDirectory, *, tensorboard: bool, resume_at: int | None) -> None:
        if resume_at is not None:
            _cut_after(run.metrics, resume_at or -1)  # a run resumed at 0 evaluates its start again
        self._file = run.metrics.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.tensorboard), purge_step=resume_at + 1 if resume_at else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; NaN becomes null, since JSON has none."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _cut_after(path: pathlib.Path, step: int) -> None:
    """Drop lines after the checkpoint that is resumed: those steps are run again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
    path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Every line of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def console_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """One line a step.

    >>> metrics = {"reward/mean": 4.5, "rollout/groups_without_signal": 0.25, "rollout/length_mean_tokens": 9.0}
    >>> metrics |= {"policy/kl_reference": 0.0123, "policy/clip_fraction": 0.05, "time/step_seconds": 4.1}
    >>> console_line(12, 200, metrics | {"time/rollout_seconds": 1.0})
    'step  12/200 reward 4.50 no-signal 25% len 9.0 kl 0.0123 clip 5.0% | 4.1 s: rollout 1.0'
    """
    parts = [
        f"step {step:>{len(str(steps))}}/{steps}",
        f"reward {metrics['reward/mean']:.2f}",
        f"no-signal {metrics['rollout/groups_without_signal']:.0%}",
        f"len {metrics['rollout/length_mean_tokens']:.1f}",
    ]
    if "policy/kl_reference" in metrics:
        parts.append(f"kl {metrics['policy/kl_reference']:.4f}")
    parts.append(f"clip {metrics['policy/clip_fraction']:.1%}")
    stages = [f"{name} {metrics[f'time/{name}_seconds']:.1f}" for name in STAGES if f"time/{name}_seconds" in metrics]
    return f"{' '.join(parts)} | {metrics['time/step_seconds']:.1f} s: {', '.join(stages)}"


def write_samples(run: RunDirectory, step: int, scored: Sequence[Scored], groups: int) -> None:
    """Best and worst completion of the first `groups` prompts of this rank, with what the verifiers said.

    One indeterminate completion of each further group follows, of up to `MAX_FAILED_GROUPS`: why a verifier failed is
    worth knowing wherever it did.
    """
    by_prompt: dict[int, list[Scored]] = {}
    for one in scored:
        by_prompt.setdefault(one.completion.prompt.prompt_id, []).append(one)
    with (run.samples / f"step_{step:06d}.jsonl").open("w", encoding="utf-8") as file:
        chosen = [_best_and_worst(group) for group in by_prompt.values()]
        failed = [{"indeterminate": kinds["indeterminate"]} for kinds in chosen[groups:] if "indeterminate" in kinds]
        for kinds in chosen[:groups] + failed[:MAX_FAILED_GROUPS]:
            for kind, one in kinds.items():
                file.write(json.dumps(_sample_line(step, kind, one), ensure_ascii=False) + "\n")


def _best_and_worst(group: Sequence[Scored]) -> dict[str, Scored]:
    """Also the first indeterminate completion, which is neither."""
    rewarded = [(one.reward, one) for one in group if one.reward is not None]
    ranked = [one for _, one in sorted(rewarded, key=lambda pair: pair[0])]
    failed = [one for one in group if one.reward is None]
    chosen: dict[str, Scored] = {}
    if len(ranked) == 1:
        chosen["only"] = ranked[0]
    elif ranked:
        chosen |= {"best": ranked[-1], "worst": ranked[0]}
    if failed:
        chosen["indeterminate"] = failed[0]
    return chosen


def _sample_line(step: int, kind: str, one: Scored) -> dict[str, Any]:
    completion = one.completion
    return {
        "step": step,
        "kind": kind,
        "prompt_id": completion.prompt.prompt_id,
        "prompt": completion.prompt.text,
        "completion": completion.text,
        "stop": completion.stop,
        "tokens": len(completion.token_ids),
        "reward": one.reward,
        "verdicts": [
            {"verifier": task.verifier, "ground_truth": task.ground_truth}
            | {"outcome": v.outcome, "score": v.score, "detail": v.detail}
            for task, v in zip(completion.prompt.tasks, one.verdicts, strict=True)
        ],
    }  # fmt: skip
