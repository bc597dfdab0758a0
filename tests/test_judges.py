"""Which verifier judges what: one recipe, two uses, one pool."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from rlvr import judges, recipe
from rlvr.config import Config
from rlvr.evaluate import evaluation_scorer
from rlvr.records import Completion, Prompt, Stop, Task
from rlvr.reward import Scorer, start_pool
from verifiers.base import Outcome, Use
from verifiers.ifeval.ifeval import IFEvalVerifier
from verifiers.ifeval.instruction import judge

RECIPE: dict[str, Any] = {
    "run_dir": "runs/x",
    "model": {"path": "owner/name", "dtype": "float32"},
    "data": {"train": "rows.jsonl", "eval": "heldout.jsonl"},
    "rollout": {"prompts_per_step": 4},
    "training": {"steps": 2},
}
HIGHLIGHTS = {"instruction_id": ["detectable_format:number_highlighted_sections"], "kwargs": [{"num_highlights": 3}]}
HIGHLIGHTED = {"func_name": "validate_highlighted_sections", "N": 3}
SPAM = "*a* *a* *a* *a* *a* *a*"
TEXT = "*Paris* is the capital of France, *Rome* of Italy, and *Athens*, my favourite, of Greece."


def config(**changes: Any) -> Config:
    return Config.model_validate(RECIPE | changes)


def completion(text: str, verifier: str, ground_truth: Any) -> Completion:
    prompt = Prompt(
        prompt_id=0, token_ids=(1,), text="Name capitals.", tasks=(Task(verifier=verifier, ground_truth=ground_truth),)
    )
    return Completion(
        prompt=prompt, sample=0, place=0, token_ids=(1, 2), logprobs=(-0.5, -0.5), text=text, stop=Stop.EOS,
        policy_version=0,
    )  # fmt: skip


def outcomes(made: Config, completions: list[Completion]) -> dict[Use, list[Outcome]]:
    """Judged by one pool, as a training step does and as an evaluation does."""
    with start_pool(made, {one.prompt.tasks[0].verifier for one in completions}) as pool:
        scorers: dict[Use, Scorer] = {
            "training": Scorer(pool, made.reward, made.verification.remap),
            "evaluation": evaluation_scorer(made, pool, [one.prompt for one in completions]),
        }
        found: dict[Use, list[Outcome]] = {}
        for use, scorer in scorers.items():
            for index, one in enumerate(completions):
                scorer.submit(index, one)
            found[use] = [scored.verdicts[0].outcome for scored in scorer.collect()]
    return found


def test_spam_is_not_rewarded_in_training_and_has_the_references_verdict_in_evaluation() -> None:
    assert judge(IFEvalVerifier().read(HIGHLIGHTS), SPAM) == [True]  # what the public evaluator says
    rows = [("ifeval", HIGHLIGHTS), ("tulu3_ifeval", HIGHLIGHTED)]
    spam = [completion(SPAM, *row) for row in rows]
    text = [completion(TEXT, *row) for row in rows]
    found = outcomes(config(), [*spam, *text])
    assert found["training"] == [Outcome.WRONG, Outcome.WRONG, Outcome.CORRECT, Outcome.CORRECT]
    assert found["evaluation"] == [Outcome.CORRECT] * 4


def test_a_recipe_may_switch_the_guard_off_in_training_or_on_in_evaluation() -> None:
    off = config(verification={"options": {"IFEval": {"guard": False}}})
    both = config(evaluation={"options": {"IFEval": {"guard": True}}})
    spam = [completion(SPAM, "ifeval", HIGHLIGHTS)]
    assert outcomes(off, spam) == {"training": [Outcome.CORRECT], "evaluation": [Outcome.CORRECT]}
    assert outcomes(both, spam) == {"training": [Outcome.WRONG], "evaluation": [Outcome.WRONG]}


@pytest.mark.parametrize("name", ["ifeval", "tulu3_ifeval", "ifbench"])
def test_the_guard_is_the_only_difference_unless_a_recipe_says_more(name: str) -> None:
    made = config(
        verification={"options": {name: {"guard": {"minimum_words": 1}}}},
    )
    assert judges.spec(config(), name, "training").options == {"guard": True}
    assert judges.spec(config(), name, "evaluation").options == {}
    assert judges.spec(made, name, "training").options == {"guard": {"minimum_words": 1}}
    assert judges.spec(made, name, "evaluation").options == {}


def test_other_options_hold_in_both_uses_until_evaluation_has_its_own() -> None:
    made = config(
        verification={"options": {"ifeval": {"mode": "loose", "score": "mean"}}},
        evaluation={"options": {"ifeval": {"mode": "strict"}}},
    )
    assert judges.spec(made, "ifeval", "training").options == {"guard": True, "mode": "loose", "score": "mean"}
    assert judges.spec(made, "ifeval", "evaluation").options == {"mode": "strict", "score": "mean"}
    assert judges.describe_training(made, "ifeval") == (
        'ifeval: training with guard = true, mode = "loose", evaluation with mode = "strict"'
    )


def test_published_verdicts_are_given_as_they_were() -> None:
    made = config(verification={"options": {"tulu3_ifeval": {"compat": True}}})
    assert judges.spec(made, "tulu3_ifeval", "training").options == {"compat": True}


def test_the_parts_of_a_combination_are_guarded_too() -> None:
    parts = [{"name": "ifeval"}, {"name": "length", "options": {"unit": "words"}}]
    made = config(verification={"options": {"combine": {"verifiers": parts}}})
    guarded = [{"name": "ifeval", "options": {"guard": True}}, {"name": "length", "options": {"unit": "words"}}]
    assert judges.spec(made, "combine", "training").options["verifiers"] == guarded
    assert judges.spec(made, "combine", "evaluation").options["verifiers"][0]["options"] == {}


def test_a_verifier_of_one_use_stands_in_the_pool_once() -> None:
    assert list(judges.pool_specs(config(), ["math", "gsm8k"])) == ["gsm8k", "math"]
    assert list(judges.pool_specs(config(), ["ifeval"])) == ["ifeval", "ifeval in evaluation"]
    without = RECIPE | {"data": {"train": "rows.jsonl"}}
    assert list(judges.pool_specs(Config.model_validate(without), ["ifeval"])) == ["ifeval"]


def test_a_verifier_named_by_its_file_may_have_options_in_evaluation(tmp_path: pathlib.Path) -> None:
    (tmp_path / "Mine.py").write_text(
        "from verifiers import Sample, Verdict, Verifier\n"
        "class Limit(Verifier):\n"
        "    training_options = {'limit': 1}\n"
        "    class Config(Verifier.Config):\n"
        "        limit: int = 9\n"
        "    def verify(self, sample):\n"
        "        return Verdict.from_score(float(len(sample.completion) <= self.config.limit))\n"
    )
    name = f"{tmp_path / 'Mine.py'}:Limit"
    found = outcomes(config(), [completion("four", name, None)])
    assert found == {"training": [Outcome.WRONG], "evaluation": [Outcome.CORRECT]}


def test_every_shipped_recipe_states_where_it_has_no_guard(repository: pathlib.Path) -> None:
    for path in sorted((repository / "launch" / "recipes").glob("*.toml")):
        if "rollout" not in (text := path.read_text()) or "\nstage = " in text:
            continue
        made = recipe.load(path)
        guarded = judges.spec(made, "tulu3_ifeval", "training").options["guard"]
        assert guarded or "guard = false #" in text or "extends" in text, path


def test_options_for_an_evaluation_that_does_not_take_place_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation.options \(of ifeval\) does nothing without data.eval"):
        Config.model_validate(
            RECIPE | {"data": {"train": "rows.jsonl"}, "evaluation": {"options": {"ifeval": {"mode": "loose"}}}}
        )
