"""Which groups can teach anything, and dynamic sampling: rounds, limits, numbering."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlvr.groups import Draw, Signal, group_metrics, keep_groups_with_signal, signals
from rlvr.records import Completion, Prompt, Scored, Stop
from verifiers.base import Verdict

SAMPLES = 2
REWARDS: dict[str, tuple[float | None, float | None]] = {
    "mixed": (10.0, 0.0),
    "solved": (10.0, 10.0),
    "failed": (0.0, 0.0),
    "unknown": (10.0, None),
    "lost": (None, None),
}


def prompt(number: int, kind: str) -> Prompt:
    return Prompt(prompt_id=number, token_ids=(1,), text=kind, tasks=())


def group(slot: int, of: Prompt) -> list[Scored]:
    """Two samples of a prompt whose text says how they come out."""
    completions = [
        Completion(
            prompt=of,
            sample=sample,
            place=slot * SAMPLES + sample,
            token_ids=(1,),
            logprobs=(-1.0,),
            text="",
            stop=Stop.EOS,
            policy_version=0,
        )
        for sample in range(SAMPLES)
    ]
    return [
        Scored(
            completion=one,
            verdicts=(Verdict.correct() if reward is not None else Verdict.indeterminate("x"),),
            score=None if reward is None else reward / 10,
            reward=reward,
        )
        for one, reward in zip(completions, REWARDS[of.text], strict=True)
    ]


def draw(prompts: Sequence[Prompt], first_slot: int = 0) -> Draw:
    scored = [one for slot, of in enumerate(prompts) for one in group(first_slot + slot, of)]
    return Draw(prompts=len(prompts), scored=scored, kept=scored)


def named(kinds: str, first: int = 0) -> list[Prompt]:
    return [prompt(first + number, kind) for number, kind in enumerate(kinds.split())]


def test_a_group_has_signal_where_two_known_rewards_differ() -> None:
    found = signals(draw(named("mixed solved failed unknown lost")).scored)
    expected = [Signal.SOME, Signal.EQUAL, Signal.EQUAL, Signal.UNKNOWN, Signal.UNKNOWN]
    assert found == dict(zip((0, 2, 4, 6, 8), expected, strict=True))


def test_a_prompt_that_is_drawn_twice_makes_two_groups() -> None:
    again = prompt(3, "solved")
    assert signals(group(0, again) + group(1, again)) == {0: Signal.EQUAL, 2: Signal.EQUAL}


def test_shares_of_groups_by_hand() -> None:
    # of 5: solved, failed, unknown and lost have no signal; the unknown one's only known score is 1
    assert group_metrics(draw(named("mixed solved failed unknown lost")).scored) == {
        "rollout/groups_without_signal": 0.8,
        "rollout/groups_under_two_known": 0.4,
        "rollout/groups_all_correct": 0.4,
        "rollout/groups_all_wrong": 0.2,
    }
    assert all(math.isnan(share) for share in group_metrics([]).values())


class Sampler:
    """Gives what the prompts' texts say, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, prompts: Sequence[Prompt], first_slot: int) -> Draw:
        self.asked.append(([p.prompt_id for p in prompts], first_slot))
        return draw(prompts, first_slot)


def refill(first: str, spare: str, *, rounds: int) -> tuple[Draw, Sampler]:
    sampler = Sampler()
    own = named(first)
    found = keep_groups_with_signal(
        draw(own),
        named(spare, first=100),
        sampler,
        wanted=len(own),
        rounds=rounds,
        samples_per_prompt=SAMPLES,
    )
    return found, sampler


def kept_prompts(found: Draw) -> list[int]:
    return [one.completion.prompt.prompt_id for one in found.kept if one.completion.sample == 0]


def test_each_round_asks_for_as_many_prompts_as_are_missing() -> None:
    found, sampler = refill("mixed solved failed mixed", "solved mixed failed mixed mixed", rounds=9)
    # 2 missing: 100, 101 of which one is mixed; 1 missing: 102, failed; 1 missing: 103, mixed
    assert sampler.asked == [([100, 101], 4), ([102], 6), ([103], 7)]
    assert (found.rounds, found.groups_missing, found.prompts) == (3, 0, 8)
    assert kept_prompts(found) == [0, 3, 101, 103]
    # numbered from 0 without gaps, in the order of their slots 0, 3, 5, 7
    assert [one.completion.place for one in found.kept] == list(range(8))
    assert len(found.scored) == len(found.kept) + len(found.dropped) == 16


def test_at_the_limit_the_step_goes_on_with_what_there_is() -> None:
    found, sampler = refill("mixed solved failed mixed", "solved mixed failed mixed mixed", rounds=1)
    assert len(sampler.asked) == 1
    assert (found.rounds, found.groups_missing, found.prompts) == (1, 1, 6)
    assert kept_prompts(found) == [0, 3, 101]


def test_without_rounds_groups_are_dropped_and_not_replaced() -> None:
    found, sampler = refill("mixed solved unknown", "mixed mixed", rounds=0)
    assert (sampler.asked, found.rounds, found.groups_missing) == ([], 0, 2)
    assert kept_prompts(found) == [0]
    assert len(found.dropped) == 4


def test_when_every_prompt_was_tried_it_stops_though_rounds_are_left() -> None:
    found, sampler = refill("solved failed", "solved", rounds=100)
    assert sampler.asked == [([100], 2)]
    assert (found.rounds, found.groups_missing, found.kept) == (1, 2, [])


def test_a_full_step_is_not_refilled() -> None:
    found, sampler = refill("mixed mixed", "mixed", rounds=3)
    assert sampler.asked == []
    assert found.metrics() == {"rollout/refill_rounds": 0.0, "rollout/groups_missing": 0.0}


def test_indeterminate_samples_of_a_kept_group_stay_with_it_for_the_ledger() -> None:
    (lost, _), mixed = group(0, prompt(0, "lost")), group(0, prompt(0, "mixed"))
    found = keep_groups_with_signal(
        Draw(prompts=1, scored=[*mixed, lost], kept=[]), [], Sampler(), wanted=1, rounds=1, samples_per_prompt=SAMPLES
    )
    assert [one.reward for one in found.kept] == [10.0, 0.0, None]
