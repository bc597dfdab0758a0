"""Everything a run is made of, on one rank: built before the first step, used by every step, taken down at the end."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlvr import checkpoint, data_report, distributed, watch
from rlvr.chat import load_tokenizer, stop_token_ids
from rlvr.colocated import Sampler
from rlvr.config import Config
from rlvr.data import read_held_out, read_training
from rlvr.disaggregated import AnySampler, RemoteSampler
from rlvr.errors import ConfigError
from rlvr.evaluate import evaluate
from rlvr.learner import Learner
from rlvr.ledger import Ledger
from rlvr.log import MetricsLog, console_line
from rlvr.pretrained import MIB, save_pretrained
from rlvr.prompts import PromptSet, make_prompts, verifier_names
from rlvr.reward import Scorer, start_pool
from rlvr.rollout import roll_out, share_of_rank, trajectories
from rlvr.run_directory import RunDirectory
from rlvr.startup import check_ground_truths
from rlvr.weight_sync import WeightSync, make_canaries, refuse_disagreement
from verifiers.pool import VerifierPool

CONTRACT_PROMPTS = 8
CANARY_TOKENS = 16


class Parts:
    """Everything a run is made of, on this rank."""

    def __init__(self, config: Config, place: distributed.Place | None = None) -> None:
        self.config = config
        self.run = RunDirectory(config.run_dir)
        self._log: MetricsLog | None = None
        self._started = time.perf_counter()
        self.tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
        watch.at("start-up, reading the rows")
        self.train_set, self.eval_sets, names = load_prompts(config, self.tokenizer)
        for prompts in (self.train_set, *self.eval_sets):
            self.say(prompts.summary())
        watch.at("start-up, the verifiers")
        self.pool: VerifierPool = start_pool(config, names)
        updates = config.training.steps * config.algorithm.epochs * config.algorithm.minibatches
        end_token_ids = stop_token_ids(config.model.path, self.tokenizer)
        # where they share a GPU, the sampler is first to take its part: vLLM measures what is free
        first = self._meet_samplers(place) if place is not None and config.placement.share_gpus else None
        watch.at("start-up, the learner")
        self.learner = Learner(config, total_updates=updates, end_token_ids=end_token_ids)
        watch.at("start-up, the sampler")
        self.sampler = first or self._make_sampler(place, end_token_ids)
        vocabulary = self.learner.policy.engine.module.transformer.config.vocab_size
        canaries = make_canaries(vocabulary, count=config.proof.canaries, length=CANARY_TOKENS, seed=config.seed)
        self.sync = WeightSync(self.learner, self.sampler, canaries)
        self.ledger = Ledger.open(self.train_set)

    def _make_sampler(self, place: distributed.Place | None, end_token_ids: list[int]) -> AnySampler:
        max_model_len = self._max_model_len()
        if place is not None:
            return self._meet_samplers(place)
        return Sampler(self.config, stop_token_ids=end_token_ids, max_model_len=max_model_len)

    def _meet_samplers(self, place: distributed.Place) -> RemoteSampler:
        """Wait until the engines of the sampling ranks have started."""
        sampler = RemoteSampler(self.config, place)
        self.say(f"sampling on {sampler.describe()}")
        return sampler

    def _max_model_len(self) -> int:
        """Longest sequence of this run. Raises ConfigError when the model cannot hold it."""
        needed = self.config.data.max_prompt_tokens + self.config.rollout.max_tokens
        limit = getattr(self.learner.policy.engine.module.transformer.config, "max_position_embeddings", needed)
        if needed > limit:
            raise ConfigError(
                f"data.max_prompt_tokens={self.config.data.max_prompt_tokens} + rollout.max_tokens="
                f"{self.config.rollout.max_tokens} is {needed}, but the model has {limit} positions. Lower one of them."
            )
        return needed

    def start(self, run: RunDirectory, recipe_text: str, *, resume: bool) -> int:
        """Open the run directory, resume or begin, publish the first weights, prove that they arrived, and check the
        log-prob contract. Returns the first step."""
        first = 0
        data = [prompts.report for prompts in (self.train_set, *self.eval_sets)]
        if resume:
            run.refuse_other_data([report.record() for report in data])
        if resume and checkpoint.complete(run.checkpoints):
            watch.at("start-up, the checkpoint")
            state = checkpoint.resume(run.checkpoints, self.learner)
            first = int(state["step"])
            self.ledger = Ledger(**state["ledger"])
        watch.at("start-up, the first sync")
        self.sync.publish()
        watch.at("start-up, the log-prob contract")
        difference = self._contract_difference()
        self._leave_out_of_statistics()
        if distributed.rank() == 0:  # a run that cannot begin leaves no run directory behind
            run.create(self.config, recipe_text)
            data_report.write(run.data, data)
            self._log = MetricsLog(run, tensorboard=self.config.log.tensorboard, resume_at=first if resume else None)
        distributed.barrier()
        self.say(
            f"log-prob contract: learner and sampler differ by {difference:.1e} nats a token "
            f"(tolerance {self.sync.tolerance:g}); ready after {time.perf_counter() - self._started:.0f} s"
        )
        if resume:
            self.say(
                f"resuming after step {first}" if first else "no checkpoint was written: starting at the first step"
            )
        return first

    def _contract_difference(self) -> float:
        """Sample as the recipe says, and compare log-probs with the learner's. Raises LogProbContractError."""
        prompts = share_of_rank(self.train_set.prompts[: CONTRACT_PROMPTS * distributed.world_size()])
        rollout = self.config.rollout
        scorer = Scorer(self.pool, self.config.reward, self.config.verification.remap)
        roll_out(
            self.sampler,
            self.tokenizer,
            prompts,
            samples_per_prompt=1,
            temperature=rollout.temperature,
            max_tokens=min(rollout.max_tokens, 64),
            seed=(self.config.seed, "contract"),
            on_completion=scorer.submit,
        )
        scored = scorer.collect()
        batch = trajectories([dataclasses.replace(one, reward=0.0) for one in scored])
        differences = self.learner.sampler_differences(batch, self.learner.rows(batch))
        total, count = distributed.sum_over_ranks([differences.abs().sum().item(), float(differences.numel())])
        difference = total / max(count, 1.0)
        refuse_disagreement(difference, self.sync.tolerance)
        return difference

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate on the held-out sets, if there are any, and log the result. Collective."""
        metrics: dict[str, float] = {}
        if not (self.config.evaluation.enabled and self.eval_sets):
            return metrics
        started = time.perf_counter()
        watch.at(f"the evaluation after step {step}")
        for held_out in self.eval_sets:
            metrics |= evaluate(self.config, self.sampler, self.tokenizer, self.pool, held_out)
            name = f"eval/{held_out.name}"
            self.say(
                f"{name} after step {step}: pass@1 {metrics[f'{name}/pass_at_1']:.1%} "
                f"(± {metrics[f'{name}/pass_at_1_ci95']:.1%}), greedy {metrics[f'{name}/pass_at_1_greedy']:.1%}"
            )
        self._leave_out_of_statistics()
        metrics["time/evaluate_seconds"] = time.perf_counter() - started
        if step == 0 and self._log is not None:
            self._log.write(0, metrics | {"time/startup_seconds": started - self._started})
        return metrics

    def _leave_out_of_statistics(self) -> None:
        """vLLM's statistics are of training: what was sampled for something else does not count."""
        if self.sampler.statistics is not None:
            self.sampler.statistics.clear()

    def finish_step(self, step: int, metrics: dict[str, float], *, stop: bool) -> None:
        """Evaluate, log and checkpoint as the recipe says. Collective.

        A run that is asked to `stop` saves its state at once and evaluates nothing: it may be killed soon.
        """
        training = self.config.training
        last = step == training.steps
        self.say(console_line(step, training.steps, metrics))
        if not stop and (last or (training.evaluate_every is not None and step % training.evaluate_every == 0)):
            metrics = metrics | self.evaluate(step)
        if self._log is not None:  # before the checkpoint: a run that is killed in between repeats the step
            self._log.write(step, metrics)
            self.ledger.save(self.run.ledger)
        if last or stop or (training.checkpoint_every is not None and step % training.checkpoint_every == 0):
            state = {"ledger": dataclasses.asdict(self.ledger)}
            checkpoint.save(self.run.checkpoints, step, self.learner, state, keep=training.keep_checkpoints)

    def save_model(self) -> None:
        """Write the final policy as a Hugging Face folder. Collective."""
        watch.at("saving the final policy")
        save_pretrained(
            self.learner.policy,
            self.run.model,
            self.tokenizer,
            max_shard_bytes=self.config.learner.max_shard_mib * MIB,
        )
        self.say(f"final policy: {self.run.model}")

    def say(self, line: str) -> None:
        """Print from one rank."""
        if distributed.rank() == 0:
            print(line, flush=True)

    def close(self) -> None:
        self.pool.close()
        self.sampler.close()
        if self._log is not None:
            self._log.close()


@contextmanager
def run_parts(config: Config, place: distributed.Place | None = None) -> Iterator[Parts]:
    """Build the parts of a run, and take them down again."""
    parts = Parts(config, place)
    try:
        yield parts
    finally:
        parts.close()
        distributed.stop()


def load_prompts(config: Config, tokenizer: Any) -> tuple[PromptSet, list[PromptSet], list[str]]:
    """Read all rows, refuse unknown verifiers and unreadable ground truths, and tokenize.

    Returns the training set, the held-out sets by file name, and the names of all verifiers that rows ask for.
    """
    train_rows = read_training(config.data, config.plugins)
    eval_rows = {
        pathlib.Path(source.path).stem: read_held_out(config.data, source, config.plugins)
        for source in config.data.eval
    }
    check_ground_truths(config, [train_rows, *eval_rows.values()])
    limit = config.data.max_prompt_tokens
    train_set = make_prompts("train", train_rows, tokenizer, limit)
    eval_sets = [make_prompts(name, rows, tokenizer, limit) for name, rows in eval_rows.items()]
    return train_set, eval_sets, verifier_names([train_rows, *eval_rows.values()])
