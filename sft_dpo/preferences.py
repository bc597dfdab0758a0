"""Preference pairs from verifiers: sample, verify, and pair a correct completion with a wrong one.

    prompts -> completions (policy, other models, files) -> verdicts or ratings -> pairs of each prompt -> rows

Prompts whose completions are all correct or all wrong teach nothing; they are dropped and counted.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr import data_report, distributed
from rlvr.chat import encode_prompts, load_tokenizer, stop_token_ids
from rlvr.colocated import Sampler
from rlvr.config import Data, Model, Source
from rlvr.data import Row, mixed, read_conversations, read_held_out, read_training
from rlvr.data_report import DataReport
from rlvr.errors import DataError
from rlvr.evaluate import evaluate, is_correct
from rlvr.log import MetricsLog
from rlvr.prompts import PromptSet, make_prompts
from rlvr.prompts import verifier_names as names_of
from rlvr.records import Completion, Prompt, Scored, Stop
from rlvr.reward import Scorer, reward_metrics, start_pool
from rlvr.rollout import roll_out, share_of_rank
from rlvr.run_directory import RunDirectory
from rlvr.seeds import derive
from rlvr.startup import check_ground_truths
from sft_dpo.config import Preferences
from sft_dpo.judge import rate, refuse_unusable
from sft_dpo.pairing import Candidate, Choice, pair_row, pairs_of, statistics
from sft_dpo.training import say
from verifiers.pool import VerifierPool


def run(config: Preferences, *, recipe_text: str) -> None:
    """Write the pairs, the policy's judged samples, and statistics. Collective."""
    distributed.start()
    folder = RunDirectory(config.run_dir)
    folder.refuse_if_used(resume=False)
    distributed.barrier()
    rows = read_training(config.data, config.plugins)
    held_out = {
        pathlib.Path(source.path).stem: read_held_out(config.data, source, config.plugins)
        for source in config.data.eval
    }
    check_ground_truths(config.as_rlvr(), [rows, *held_out.values()])
    if config.judge is not None:
        refuse_unusable(config.judge)  # before hours of sampling, as what follows
    pool = start_pool(config.as_rlvr(), names_of([rows, *held_out.values()]))
    collected = Collected(config, pool)
    given = [collected.read(source, rows) for source in config.others.completions]
    metrics = collected.sample(config.model, rows, held_out)
    for model in config.others.models:
        collected.sample(model, rows, {})
    for source, completions in zip(config.others.completions, given, strict=True):
        collected.judge(source, completions)
    pool.close()
    if distributed.rank() == 0:
        collected.rate(rows)
        folder.create(config, recipe_text)
        log = MetricsLog(folder, tensorboard=False, resume_at=None)
        log.write(0, metrics)
        log.close()
        data_report.write(folder.data, collected.reports)
        collected.write(folder.path, rows)
    distributed.barrier()
    distributed.stop()


class Collected:
    """Completions of all prompts, from all sources, with their verdicts; rank 0 holds those of every rank."""

    def __init__(self, config: Preferences, pool: VerifierPool) -> None:
        self.config, self.pool = config, pool
        self.candidates: dict[int, list[Candidate]] = {}
        """By prompt id: the row's place in the training set."""
        self.samples: list[dict[str, Any]] = []
        """The policy's own, as `sft_dpo value` reads them."""
        self.reports: list[DataReport] = []
        """Of the prompts as the policy's tokenizer has them."""
        self._tokenizer = load_tokenizer(config.model.path, config.model.chat_template)

    def sample(self, model: Model, rows: Sequence[Row], held_out: Mapping[str, Sequence[Row]]) -> dict[str, float]:
        """Sample from a model, judge, and evaluate it on the held-out sets. Collective; returns the evaluation."""
        config = self.config.as_rlvr(model)
        tokenizer = load_tokenizer(model.path, model.chat_template)
        limit = config.data.max_prompt_tokens
        prompts = make_prompts("train", rows, tokenizer, limit)
        say(prompts.summary())
        sampler = Sampler(
            config,
            stop_token_ids=stop_token_ids(model.path, tokenizer),
            max_model_len=limit + config.rollout.max_tokens,
            load_format="auto",
        )
        for number, piece in enumerate(_pieces(prompts, config.rollout.prompts_per_step)):
            scorer = Scorer(self.pool, config.reward, config.verification.remap)
            completions = roll_out(
                sampler,
                tokenizer,
                share_of_rank(piece),
                samples_per_prompt=config.rollout.samples_per_prompt,
                temperature=config.rollout.temperature,
                max_tokens=config.rollout.max_tokens,
                seed=(config.seed, "preferences", model.path, number),
                on_completion=(lambda index, completion: None) if self.config.judge else scorer.submit,
            )
            scored = _unjudged(completions) if self.config.judge else scorer.collect()
            self._keep(scored, model.path, is_policy=model is self.config.model)
        metrics: dict[str, float] = {}
        evaluated = [make_prompts(name, own, tokenizer, limit) for name, own in held_out.items()]
        if model is self.config.model:
            self.reports = [one.report for one in (prompts, *evaluated)]
        for own in evaluated:
            metrics |= evaluate(config, sampler, tokenizer, self.pool, own)
            name = own.name
            say(f"eval/{name}: pass@1 {metrics[f'eval/{name}/pass_at_1']:.1%}")
        sampler.close()
        return metrics

    def read(self, source: Source, rows: Sequence[Row]) -> list[Completion]:
        """The completions of a file. Raises DataError when none of them is for a prompt of `rows`."""
        completions, unmatched = read_completions(self.config.data, source, rows, self._tokenizer)
        say(f"{source.path}: {len(completions)} completions of prompts in data.train, {unmatched} of others")
        if not completions:
            raise DataError(
                f"{source.path}: none of its {unmatched} rows begins with a prompt of data.train. Its `messages` must "
                "have the same turns as a row of data.train, and an assistant's turn behind them."
            )
        return completions

    def judge(self, source: Source, completions: Sequence[Completion]) -> None:
        """Judge the completions of a file. Collective."""
        scorer = Scorer(self.pool, self.config.reward, self.config.verification.remap)
        mine = share_of_rank(completions)
        for index, completion in enumerate(mine):
            if not self.config.judge:
                scorer.submit(index, completion)
        self._keep(_unjudged(mine) if self.config.judge else scorer.collect(), source.path, is_policy=False)

    def _keep(self, scored: Sequence[Scored], source: str, *, is_policy: bool) -> None:
        """Collective. Raises IndeterminateError when too many verdicts are indeterminate."""
        if not self.config.judge:
            reward_metrics(scored, self.config.reward.max_indeterminate_share)
        mine = [(_candidate(one, source, is_policy=is_policy), _sample(one)) for one in scored]
        for part in distributed.gather_objects(mine):
            for candidate, sample in part:
                self.candidates.setdefault(candidate.prompt_id, []).append(candidate)
                if is_policy and sample["reward"] is not None:
                    self.samples.append(sample)

    def rate(self, rows: Sequence[Row]) -> None:
        """Replace verdicts by the judge's ratings, where the recipe has a judge."""
        if self.config.judge is None:
            return
        flat = [candidate for group in self.candidates.values() for candidate in group]
        ratings = rate(self.config.judge, [(rows[c.prompt_id].messages[-1]["content"], c.text) for c in flat])
        self.candidates = {}
        for candidate, rating in zip(flat, ratings, strict=True):
            rated = dataclasses.replace(candidate, score=rating)
            self.candidates.setdefault(candidate.prompt_id, []).append(rated)

    def write(self, folder: pathlib.Path, rows: Sequence[Row]) -> None:
        """Pair, and write `pairs.jsonl`, `samples.jsonl` and `statistics.json`."""
        least_lead = self.config.judge.least_lead if self.config.judge else 1.0
        choices: dict[int, list[Choice]] = {}
        fates: dict[int, str] = {}
        for prompt_id, candidates in self.candidates.items():
            seed = derive(self.config.seed, "pair", prompt_id)
            choices[prompt_id], fates[prompt_id] = pairs_of(candidates, self.config.pairing, least_lead, seed)
        pairs = [
            pair_row(f"{prompt_id}-{number}", rows[prompt_id].messages, choice, rows[prompt_id].dataset)
            for prompt_id in sorted(choices)
            for number, choice in enumerate(choices[prompt_id])
        ]
        found = statistics(self.candidates, choices, fates) | {"pairing": self.config.pairing.policy}
        _write_lines(folder / "samples.jsonl", self.samples)
        _write_lines(folder / "pairs.jsonl", pairs)
        (folder / "statistics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print("\n".join(f"{name}: {value}" for name, value in found.items()), flush=True)
        if not pairs:
            raise DataError(
                f"no pair was made: {found['prompts_by_fate']}. Sample more completions of a prompt, or raise "
                "rollout.temperature."
            )


def read_completions(data: Data, source: Source, rows: Sequence[Row], tokenizer: Any) -> tuple[list[Completion], int]:
    """Completions of a file for prompts of `rows`, and how many rows answer none of these."""
    # by the conversation itself: rows of different files share no id
    wanted: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for prompt_id, row in enumerate(rows):
        wanted.setdefault(_texts(row.messages), []).append(prompt_id)
    read = read_conversations(source, max_bad_share=data.max_bad_share, duplicates=data.duplicates)
    found: list[Completion] = []
    seen: collections.Counter[int] = collections.Counter()
    unmatched = 0
    for turns in mixed(source, read):
        ids = wanted.get(_texts(turns[:-1]), []) if turns[-1]["role"] == "assistant" else []
        unmatched += not ids
        for prompt_id in ids:
            found.append(_completion(prompt_id, rows[prompt_id], turns[-1]["content"], seen[prompt_id], tokenizer))
            seen[prompt_id] += 1
    return found, unmatched


def _completion(prompt_id: int, row: Row, text: str, sample: int, tokenizer: Any) -> Completion:
    (asked,) = encode_prompts(tokenizer, [row.messages])
    tokens = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    prompt = Prompt(
        prompt_id=prompt_id,
        token_ids=asked,
        text=row.messages[-1]["content"],
        tasks=row.tasks,
        columns=row.columns,
    )
    return Completion(
        prompt=prompt,
        sample=sample,
        place=0,
        token_ids=tokens,
        logprobs=(),
        text=text,
        stop=Stop.EOS,
        policy_version=-1,
    )


def _texts(turns: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _pieces(prompts: PromptSet, size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts.prompts), size):
        yield prompts.prompts[start : start + size]


def _unjudged(completions: Sequence[Completion]) -> list[Scored]:
    return [Scored(completion=completion, verdicts=(), score=None, reward=None) for completion in completions]


def _candidate(one: Scored, source: str, *, is_policy: bool) -> Candidate:
    completion = one.completion
    correct = is_correct(one) if one.verdicts else None
    return Candidate(
        prompt_id=completion.prompt.prompt_id,
        source=source,
        text=completion.text,
        tokens=len(completion.token_ids),
        mean_logprob=sum(completion.logprobs) / len(completion.logprobs) if is_policy else None,
        score=None if correct is None else float(correct),
        has_end=completion.stop is Stop.EOS,
    )


def _sample(one: Scored) -> dict[str, Any]:
    completion = one.completion
    return {
        "prompt_id": completion.prompt.prompt_id,
        "sample": completion.sample,
        "prompt_token_ids": list(completion.prompt.token_ids),
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "stop": completion.stop,
        "score": one.score,
        "reward": one.reward,
    }


def _write_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
