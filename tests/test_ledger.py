"""Everything that was drawn is accounted for, or the run stops."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from rlvr.data_report import DataReport
from rlvr.errors import PolicyError
from rlvr.groups import Draw
from rlvr.ledger import Ledger
from rlvr.prompts import PromptSet
from rlvr.records import Completion, Prompt, Scored, Stop, Task
from verifiers.base import Verdict


def prompt(number: int) -> Prompt:
    return Prompt(prompt_id=number, token_ids=(1,), text="q", tasks=(Task(verifier="math", ground_truth="3"),))


def scored(number: int, sample: int, tokens: int, reward: float | None = 10.0) -> Scored:
    completion = Completion(
        prompt=prompt(number),
        sample=sample,
        place=4 * number + sample,
        token_ids=(1,) * tokens,
        logprobs=(-1.0,) * tokens,
        text="",
        stop=Stop.EOS,
        policy_version=0,
    )
    verdict = Verdict.indeterminate("timed out") if reward is None else Verdict.correct()
    return Scored(completion=completion, verdicts=(verdict,), score=reward and reward / 10, reward=reward)


def draw(prompts: int, scored: list[Scored]) -> Draw:
    return Draw(prompts=prompts, scored=scored, kept=scored)


def opened(*, rows: int = 10, usable: int = 8, over_length: int = 2) -> Ledger:
    prompts = tuple(prompt(number) for number in range(usable))
    report = DataReport(name="train", rows=rows, examples=usable, over_length=over_length)
    return Ledger.open(PromptSet(prompts=prompts, report=report))


def test_a_step_that_trains_on_what_it_drew_balances() -> None:
    ledger = opened()
    # 2 prompts x 2 samples; one indeterminate sample of 5 tokens leaves the loss: 3 + 4 + 2 = 9 tokens are trained
    batch = [scored(0, 0, 3), scored(0, 1, 4), scored(1, 0, 5, reward=None), scored(1, 1, 2)]
    ledger.add(draw(2, batch), 2, tokens_trained=9.0)
    ledger.add(draw(1, [scored(2, 0, 6), scored(2, 1, 1)]), 2, tokens_trained=7.0)
    assert dataclasses.asdict(ledger) == {
        "rows_read": 10,
        "rows_over_length": 2,
        "prompts_usable": 8,
        "prompts_drawn": 3,
        "prompts_abandoned": 0,
        "groups_with_signal": 0,
        "groups_all_equal": 2,
        "groups_under_two_known": 1,
        "groups_missing": 0,
        "samples_drawn": 6,
        "samples_trained": 5,
        "samples_indeterminate": 1,
        "samples_without_signal": 0,
        "samples_abandoned": 0,
        "tokens_drawn": 21,
        "tokens_trained": 16,
        "tokens_indeterminate": 5,
        "tokens_without_signal": 0,
        "tokens_abandoned": 0,
    }


def test_dropped_groups_are_counted_apart_and_the_step_still_balances() -> None:
    ledger = opened()
    mixed = [scored(0, 0, 3), scored(0, 1, 4, reward=0.0)]
    equal = [scored(1, 0, 5), scored(1, 1, 2)]
    lone = [scored(2, 0, 6), scored(2, 1, 1, reward=None)]
    one = Draw(prompts=3, scored=mixed + equal + lone, kept=mixed, dropped=equal + lone, rounds=1, groups_missing=2)
    ledger.add(one, 2, tokens_trained=7.0)
    assert (ledger.groups_with_signal, ledger.groups_all_equal, ledger.groups_under_two_known) == (1, 1, 1)
    assert (ledger.samples_drawn, ledger.samples_trained, ledger.samples_indeterminate) == (6, 2, 1)
    assert (ledger.samples_without_signal, ledger.tokens_without_signal, ledger.groups_missing) == (3, 13, 2)


def test_a_dropped_group_that_nobody_counts_stops_the_run() -> None:
    mixed, equal = [scored(0, 0, 3), scored(0, 1, 4, reward=0.0)], [scored(1, 0, 5), scored(1, 1, 2)]
    with pytest.raises(PolicyError, match="4 samples came in, 2 are accounted for"):
        opened().add(Draw(prompts=2, scored=mixed + equal, kept=mixed), 2, tokens_trained=7.0)


def test_a_token_that_the_learner_never_saw_stops_the_run() -> None:
    with pytest.raises(PolicyError) as caught:
        opened().add(draw(1, [scored(0, 0, 3), scored(0, 1, 4)]), 2, tokens_trained=6.0)
    text = str(caught.value)
    assert text.startswith("the ledger does not balance: 7 tokens came in, 6 are accounted for (Ledger(rows_read=10,")
    assert text.endswith("This is a bug of the engine: some were lost without notice.")


def test_a_token_that_was_trained_on_twice_stops_the_run() -> None:
    with pytest.raises(PolicyError, match="7 tokens came in, 8 are accounted for"):
        opened().add(draw(1, [scored(0, 0, 3), scored(0, 1, 4)]), 2, tokens_trained=8.0)


def test_a_completion_that_was_lost_stops_the_run() -> None:
    with pytest.raises(PolicyError, match="4 samples of the step came in, 3 are accounted for"):
        opened().add(draw(2, [scored(0, 0, 3), scored(0, 1, 4), scored(1, 1, 2)]), 2, tokens_trained=9.0)


def test_a_prompt_that_was_lost_stops_the_run() -> None:
    with pytest.raises(PolicyError, match="4 samples of the step came in, 2 are accounted for"):
        opened().add(draw(2, [scored(0, 0, 3), scored(0, 1, 4)]), 2, tokens_trained=7.0)


def test_a_row_that_was_lost_stops_the_run() -> None:
    with pytest.raises(PolicyError, match="11 rows came in, 10 are accounted for"):
        opened(rows=11).check()


def test_a_rank_without_prompts_balances() -> None:
    ledger = opened()
    ledger.add(draw(0, []), 1, tokens_trained=0.0)
    assert ledger.samples_drawn == 0


def test_a_saved_ledger_goes_on_after_a_resume(tmp_path: pathlib.Path) -> None:
    ledger = opened()
    ledger.add(draw(1, [scored(0, 0, 3)]), 1, tokens_trained=3.0)
    ledger.save(tmp_path / "ledger.json")
    again = Ledger(**json.loads((tmp_path / "ledger.json").read_text()))
    again.add(draw(1, [scored(1, 0, 3)]), 1, tokens_trained=3.0)
    assert (again.prompts_drawn, again.tokens_trained, again.rows_read) == (2, 6, 10)
