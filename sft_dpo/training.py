"""What every stage that trains has in common, in the order of a step:

    batch of (seed, epoch) -> this rank's share, packed -> loss and backward, row by row -> step -> log, checkpoint

A stage brings an `Objective`: its examples, how they are packed, and their loss. A step's loss is summed over its
examples and divided once by their weight (target tokens, or pairs) over all ranks and micro-batches: a mean of
micro-batch means would weight short conversations more (arXiv 2411.15124, section 4.3.2).
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from rlvr import checkpoint, data_report, distributed, watch
from rlvr.chat import load_tokenizer
from rlvr.data_report import DataReport
from rlvr.engine import Engine
from rlvr.engines import make_engine
from rlvr.errors import NonFiniteError
from rlvr.log import MetricsLog
from rlvr.mixing import shuffled
from rlvr.packing import same_number_on_every_rank
from rlvr.pretrained import MIB, save_pretrained
from rlvr.records import PackedRow
from rlvr.rollout import share_of_rank
from rlvr.run_directory import RunDirectory
from rlvr.seeds import derive
from rlvr.train import stop_requested
from sft_dpo.config import Stage

FREE_TO_CHANGE = (
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.stall_timeout_seconds",
    "log.",
    "run_dir",
)
"""Options that a resumed run may change: none of them moves a weight."""


class Objective(abc.ABC):
    """The examples of one set, and their loss."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def weight(self, batch: Sequence[int]) -> float:
        """What the loss of these examples is divided by: their target tokens, or how many they are."""

    @abc.abstractmethod
    def pack(self, batch: Sequence[int]) -> list[PackedRow]:
        """These examples in rows."""

    @abc.abstractmethod
    def parts(self, engine: Engine, rows: Sequence[PackedRow]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """For each row in turn, a scalar to differentiate, and sums over the row's examples.

        The sums have `loss` among them, and are divided by the weight of the batch. The scalar's gradient is that of
        the row's summed loss. Rows of other ranks may outnumber these, so a row can hold no example.
        """

    def before_first_update(self, engine: Engine) -> None:  # noqa: B027 - most losses need nothing of them
        """Read what is needed of the start weights. Collective."""

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """Metrics that are functions of means over the whole batch."""
        return dict(means)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage brings."""

    model: torch.nn.Module
    train: Objective
    held_out: Mapping[str, Objective]
    data: Sequence[DataReport]
    """What was read and what was left out: of the training set, then of each held-out set."""
    unit: str
    """What an example is, for people."""


class Fit:
    """One run of a stage: its engine, examples and folder."""

    def __init__(self, config: Stage, work: Work) -> None:
        self.config, self.work = config, work
        self.run = RunDirectory(config.run_dir)
        self.steps_per_epoch = -(-len(work.train) // config.training.examples_per_step)
        self.total = self.steps_per_epoch * config.training.epochs
        self.engine = make_engine(
            "model",
            work.model,
            config.optimizer,
            model=config.model,
            learner=config.learner,
            seed=config.seed,
            total_updates=self.total,
        )

    def batch(self, step: int) -> list[int]:
        """Examples of a step, of an order drawn from (seed, epoch); the last batch of an epoch may be smaller."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = shuffled(len(self.work.train), derive(self.config.seed, "order", epoch))
        size = self.config.training.examples_per_step
        return order[place * size : (place + 1) * size]

    def start(self, recipe_text: str, *, resume: bool) -> int:
        """Read the start weights where the loss needs them, resume or begin. Returns the first step. Collective."""
        for report in self.work.data:
            say(report.summary(self.work.unit, self.config.data.max_tokens))
        if resume:
            self.run.refuse_other_data([report.record() for report in self.work.data])
        for objective in (self.work.train, *self.work.held_out.values()):
            objective.before_first_update(self.engine)
        first = 0
        if resume and checkpoint.complete(self.run.checkpoints):
            first = int(checkpoint.resume(self.run.checkpoints, self.engine)["step"])
        if distributed.rank() == 0:
            self.run.create(self.config, recipe_text)
            data_report.write(self.run.data, self.work.data)
        distributed.barrier()
        if resume:
            say(f"resuming after step {first}" if first else "no checkpoint was written: starting at the first step")
        return first

    def train(self, first: int, *, resume: bool) -> bool:
        """Steps from `first` to the last. Returns whether the last was reached. Collective."""
        log = None
        if distributed.rank() == 0:
            log = MetricsLog(self.run, tensorboard=self.config.log.tensorboard, resume_at=first if resume else None)
        if first == 0 and self.work.held_out:
            before = self.evaluate(0)
            if log is not None:
                log.write(0, before)
        bar = tqdm(total=self.total, initial=first, unit="step", disable=distributed.rank() != 0, mininterval=2.0)
        with bar, stop_requested() as stopping:
            for step in range(first, self.total):
                started = time.perf_counter()
                watch.at(f"step {step + 1}")
                rate = self.engine.learning_rate()
                metrics = train_step(self.engine, self.work.train, self.batch(step))
                seconds = time.perf_counter() - started
                metrics |= {"optim/lr": rate, "time/step_seconds": seconds}
                speed = f"{metrics['tokens'] / seconds:,.0f} tok/s"
                bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed}", refresh=False)
                bar.update()
                stop = distributed.max_over_ranks([float(stopping.is_set)])[0] > 0
                self.finish_step(step + 1, metrics, log, stop=stop)
                if stop:
                    say(f"stopped after step {step + 1}; continue with --resume")
                    return False
        return True

    def finish_step(self, step: int, metrics: dict[str, float], log: MetricsLog | None, *, stop: bool) -> None:
        """Evaluate, log and checkpoint as the recipe says. Collective."""
        training = self.config.training
        last = step == self.total
        due = last or (training.evaluate_every is not None and step % training.evaluate_every == 0)
        if due and not stop and self.work.held_out:
            metrics = metrics | self.evaluate(step)
        if log is not None:
            log.write(step, metrics)
        if stop or (training.checkpoint_every is not None and (last or step % training.checkpoint_every == 0)):
            checkpoint.save(self.run.checkpoints, step, self.engine, {}, keep=training.keep_checkpoints)

    def evaluate(self, step: int) -> dict[str, float]:
        """The loss and its metrics on each held-out set, as `eval/<set>/...`. Collective."""
        found: dict[str, float] = {}
        watch.at(f"the evaluation after step {step}")
        for name, objective in self.work.held_out.items():
            metrics = evaluate(self.engine, objective, self.config.training.examples_per_step)
            found |= {f"eval/{name}/{key}": value for key, value in metrics.items()}
            shown = ", ".join(f"{key} {metrics[key]:.4g}" for key in metrics if key != "tokens")
            say(f"eval/{name} after step {step}: {shown}")
        return found


def run(
    config: Stage, make_work: Callable[[Any, Any], Work], *, recipe_text: str, resume: bool, leave: bool = True
) -> None:
    """Run a stage from start, or from its newest checkpoint, and save the model in `run_dir/model`. Collective.

    Args:
        make_work: reads examples and model, given the recipe and the tokenizer.
        leave: leave the process group at the end; DeepSpeed cannot join a second one in the same process.
    """
    distributed.start(stall_timeout_seconds=config.training.stall_timeout_seconds)
    folder = RunDirectory(config.run_dir)
    folder.refuse_if_used(resume=resume)
    if resume:
        folder.refuse_other_config(config, free=FREE_TO_CHANGE)
    distributed.barrier()
    tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
    fit = Fit(config, make_work(config, tokenizer))
    if fit.train(fit.start(recipe_text, resume=resume), resume=resume):
        save_pretrained(fit.engine, folder.model, tokenizer, max_shard_bytes=config.learner.max_shard_mib * MIB)
        say(f"model: {folder.model}")
    if leave:
        distributed.stop()


def train_step(engine: Engine, objective: Objective, batch: Sequence[int]) -> dict[str, float]:
    """One optimizer step on the examples of `batch` (over all ranks). Collective.

    Returns the objective's means, `tokens` read and `optim/grad_norm` over all ranks. Raises NonFiniteError on every
    rank, before any weight has changed, when the loss or the gradient is not finite.
    """
    rows = same_number_on_every_rank(objective.pack(share_of_rank(batch)))
    weight = objective.weight(batch)  # every rank knows the whole batch
    sums: list[dict[str, float]] = []
    for loss, summed in objective.parts(engine, rows):
        engine.backward(loss / weight)
        sums.append(summed)
    means = _over_ranks(sums, rows, weight)
    if not math.isfinite(means["loss"]):
        raise NonFiniteError(
            f"the loss is {means['loss']} before update {engine.updates + 1}; no weight was changed. "
            "Lower optimizer.learning_rate, or look for inf/NaN in the weights of model.path."
        )
    norm = engine.step()
    return objective.derived(means) | {"optim/grad_norm": norm}


def evaluate(engine: Engine, objective: Objective, examples_at_once: int) -> dict[str, float]:
    """The objective's means over all its examples. Collective."""
    totals = collections.Counter[str]()
    for start in range(0, len(objective), examples_at_once):
        batch = range(start, min(start + examples_at_once, len(objective)))
        rows = same_number_on_every_rank(objective.pack(share_of_rank(batch)))
        with engine.inference():
            totals.update(_over_ranks([summed for _, summed in objective.parts(engine, rows)], rows, 1.0))
    tokens = totals.pop("tokens")
    weight = objective.weight(range(len(objective)))
    return objective.derived({name: total / weight for name, total in totals.items()}) | {"tokens": tokens}


def _over_ranks(sums: Sequence[Mapping[str, float]], rows: Sequence[PackedRow], weight: float) -> dict[str, float]:
    """Sums of this rank's rows to means over all ranks; every rank has a row, so every rank knows the names."""
    names = list(sums[0])
    local = [sum(row[name] for row in sums) for name in names]
    tokens = sum(sum(row.lengths) for row in rows if row.sequences)
    total, *summed = distributed.sum_over_ranks([float(tokens), *local])
    return {name: value / weight for name, value in zip(names, summed, strict=True)} | {"tokens": total}


def say(line: str) -> None:
    """Print from one rank."""
    if distributed.rank() == 0:
        print(line, flush=True)
