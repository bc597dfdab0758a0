"""Preference pairs: which completions are paired, what becomes of the rest, and a judge in place of verifiers."""

from __future__ import annotations

import http.server
import json
import pathlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_tiny import table, write_rows

from rlvr.config import Data, Source
from rlvr.data import read_pairs, read_rows
from rlvr.errors import ConfigError, IndeterminateError
from rlvr.recipe import validate
from sft_dpo.config import Judge, Pairing, Preferences
from sft_dpo.judge import rate
from sft_dpo.pairing import POLICIES, Candidate, Choice, pair_row, pairs_of, statistics
from sft_dpo.preferences import read_completions
from sft_dpo.quickstart_task import train_tokenizer


def candidate(text: str, score: float | None, **more: Any) -> Candidate:
    of = {"prompt_id": 0, "source": "policy", "tokens": len(text), "mean_logprob": -1.0, "has_end": True}
    return Candidate(text=text, score=score, **(of | more))


def texts(choices: list[Choice]) -> list[tuple[str, str]]:
    return [(choice.chosen.text, choice.rejected.text) for choice in choices]


def test_a_correct_completion_is_paired_with_a_wrong_one() -> None:
    made, fate = pairs_of([candidate("5", 1.0), candidate("6", 0.0)], Pairing(), 1.0, seed=0)
    assert (texts(made), fate) == ([("5", "6")], "paired")


@pytest.mark.parametrize(
    ("candidates", "fate"),
    [
        ([candidate("5", 1.0), candidate("five", 1.0)], "all score 1"),
        ([candidate("6", 0.0), candidate("7", 0.0)], "all score 0"),
        ([candidate("5", None), candidate("6", 0.0, has_end=False)], "no verdict or no end"),
        ([candidate("5", 1.0), candidate("6", 0.0, has_end=False)], "all score 1"),  # a pair cannot say "no end"
    ],
)
def test_prompts_without_signal_make_no_pair_and_say_why(candidates: list[Candidate], fate: str) -> None:
    assert pairs_of(candidates, Pairing(), 1.0, seed=0) == ([], fate)


def test_length_matched_pairs_differ_least_in_length() -> None:
    candidates = [
        candidate(text, score) for text, score in (("aa", 1.0), ("a" * 9, 1.0), ("bbbb", 0.0), ("b" * 20, 0.0))
    ]
    made, _ = pairs_of(candidates, Pairing(policy="length_matched", pairs_per_prompt=2), 1.0, seed=0)
    assert texts(made) == [("aa", "bbbb"), ("a" * 9, "b" * 20)]  # differences 2, then 11 of what is left


def test_hardest_pairs_a_correct_one_that_is_unlikely_with_a_wrong_one_that_is_likely() -> None:
    likely = {"right": (1.0, -0.1), "rare": (1.0, -3.0), "wrong": (0.0, -0.2), "odd": (0.0, -4.0)}
    candidates = [candidate(text, score, mean_logprob=logprob) for text, (score, logprob) in likely.items()]
    made, _ = pairs_of(candidates, Pairing(policy="hardest"), 1.0, seed=0)
    assert texts(made) == [("rare", "wrong")]


def test_a_judge_needs_a_lead() -> None:
    rated = [candidate("a", 4.0), candidate("b", 3.0), candidate("c", 1.0)]
    assert texts(pairs_of(rated, Pairing(), 2.0, seed=0)[0]) == [("a", "c")]
    assert pairs_of(rated[:2], Pairing(), 2.0, seed=0) == ([], "best 4 and no lead of 2")


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([0.0, 1.0, None]), st.booleans()), max_size=12),
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_every_pair_is_right_over_wrong_and_every_completion_is_accounted_for(
    drawn: list[tuple[str, float | None, bool]], policy: Any, most: int, seed: int
) -> None:
    verdicts = {text: score for text, score, _ in drawn}  # one text, one verdict
    group = [candidate(text, verdicts[text], has_end=has_end) for text, _, has_end in drawn]
    made, fate = pairs_of(group, Pairing(policy=policy, pairs_per_prompt=most), 1.0, seed)
    assert made == pairs_of(group, Pairing(policy=policy, pairs_per_prompt=most), 1.0, seed)[0]
    assert bool(made) == (fate == "paired")
    assert len(made) <= most
    used = [side.text for pair in made for side in (pair.chosen, pair.rejected)]
    assert len(set(used)) == len(used)
    assert all((pair.chosen.score, pair.rejected.score) == (1.0, 0.0) for pair in made)
    found = statistics({0: group}, {0: made}, {0: fate})
    assert sum(found["completions_by_source"].get("policy", {}).values()) == found["completions"] == len(group)
    assert sum(found["prompts_by_fate"].values()) == found["prompts"]


def test_rows_have_the_published_columns_and_are_read_as_pairs(tmp_path: pathlib.Path) -> None:
    asked = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "2 + 3?"}]
    choice = Choice(chosen=candidate("5", 1.0), rejected=candidate("6", 0.0, source="other"))
    row = pair_row("7-0", asked, choice, ("math",))
    assert list(row)[:5] == ["id", "prompt", "chosen", "rejected", "source"]
    assert (row["prompt"], row["source"]) == ("2 + 3?", "math")
    assert (row["chosen_model"], row["rejected_model"], row["rejected_score"]) == ("policy", "other", 0.0)
    (pair,) = read_pairs(Source(path=write_rows(tmp_path / "pairs.jsonl", [row])))
    assert (pair.chosen, pair.rejected, len(pair.prompt)) == ("5", "6", 2)


def test_completions_of_a_file_go_to_the_prompts_that_they_answer(tmp_path: pathlib.Path) -> None:
    tokenizer = train_tokenizer(["What is 2 + 3?"])
    questions = ["2 + 3?", "4 + 4?", "2 + 3?"]
    prompts = [
        {"messages": [{"role": "user", "content": text}], "ground_truth": "5", "dataset": "math"} for text in questions
    ]
    rows = read_rows(Source(path=write_rows(tmp_path / "prompts.jsonl", prompts)))

    def answered(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    answers = [answered("2 + 3?", "5"), answered("2 + 3?", "6"), answered("9 + 9?", "18")]
    source = Source(path=write_rows(tmp_path / "answers.jsonl", answers))
    data = Data.model_validate({"train": ["unused"]})
    found, unmatched = read_completions(data, source, rows, tokenizer)
    assert unmatched == 1
    assert [(one.prompt.prompt_id, one.sample, one.text) for one in found] == [
        (0, 0, "5"),
        (2, 0, "5"),
        (0, 1, "6"),
        (2, 1, "6"),
    ]
    assert found[0].token_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(found[2].token_ids, skip_special_tokens=True) == "6"


def test_options_that_contradict_each_other_are_refused(tmp_path: pathlib.Path) -> None:
    base = table(tmp_path)
    of = {name: base[name] for name in ("run_dir", "model")} | {"data": {"train": ["rows.jsonl"]}}
    with pytest.raises(ConfigError, match=r"samples_per_prompt=1 makes no pair"):
        validate(Preferences, of | {"rollout": {"prompts_per_step": 4}}, "r")
    rollout = {"prompts_per_step": 4, "samples_per_prompt": 4}
    more = {"rollout": rollout, "pairing": {"policy": "hardest"}, "others": {"completions": ["a.jsonl"]}}
    with pytest.raises(ConfigError, match=r"'hardest' ranks answers by the log-probability"):
        validate(Preferences, of | more, "r")
    assert validate(Preferences, of | {"rollout": rollout}, "r").as_rlvr().rollout.samples_per_prompt == 4


class Endpoint(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint: rates an answer by its length, and once in a while talks around it."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.seen.append((self.path, self.headers["Authorization"], asked["model"], asked["temperature"]))
        answer = asked["messages"][0]["content"].partition("[Answer]\n")[2].partition("\n\n")[0]
        text = "I cannot say." if answer == "unclear" else f"Let me think.\nRating: {min(len(answer), 5)}"
        message = {"role": "assistant", "content": text}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
        body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def judge(server: Any, **more: Any) -> Judge:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return Judge(url=url, model="judge-1", key_variable="JUDGE_KEY", **more)


def test_a_judge_rates_through_an_openai_compatible_endpoint(endpoint: Any) -> None:
    asked = [("question", "a" * length) for length in (1, 4, 2, 3)] * 10
    random.Random(0).shuffle(asked)
    assert rate(judge(endpoint), asked) == [float(len(answer)) for _, answer in asked]
    assert set(endpoint.seen) == {("/v1/chat/completions", "Bearer secret", "judge-1", 0.0)}
    assert rate(judge(endpoint), [*asked, ("question", "unclear")])[-1] is None  # 1 of 41


def test_a_judge_that_does_not_rate_or_answer_stops_the_run(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndeterminateError, match=r"1 of 2 replies of judge.model='judge-1' hold no rating"):
        rate(judge(endpoint), [("question", "a"), ("question", "unclear")])
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="the environment has no such variable"):
        rate(judge(endpoint), [("question", "a")])
