"""Frames between the processes of the pool, and how any outcome of a verifier becomes a verdict."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from verifiers import pool_worker as wire
from verifiers.base import Outcome, Sample, Verdict, Verifier

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SAMPLES = st.builds(Sample, completion=st.text(), ground_truth=JSON_VALUES, prompt=st.text())


class Echo(Verifier):
    """Keeps the sample that it was given."""

    seen: Sample

    def verify(self, sample: Sample) -> Verdict:
        self.seen = sample
        return Verdict.correct()


@hypothesis.given(st.lists(SAMPLES, max_size=5), st.integers(1, 64))
def test_a_stream_of_frames_cut_anywhere_gives_the_same_samples(samples: list[Sample], cut: int) -> None:
    import json

    stream = b"".join(wire.encode_request(number, 7, sample) for number, sample in enumerate(samples))
    buffer, received = bytearray(), []
    for start in range(0, len(stream), cut):
        buffer += stream[start : start + cut]
        for (number, verifier, _), frame in wire.frames(buffer, wire.REQUEST):
            assert (number, verifier) == (len(received), 7)
            completion, ground_truth, prompt, _, columns = json.loads(frame[wire.REQUEST.size :])
            received.append(Sample(completion=completion, ground_truth=ground_truth, prompt=prompt, columns=columns))
    assert received == samples
    assert not buffer


@hypothesis.given(st.sampled_from(Outcome), st.floats(0, 1), st.text(max_size=600), st.floats(0, 1e6))
def test_a_verdict_survives_the_way_back(outcome: Outcome, score: float, detail: str, seconds: float) -> None:
    verdict = Verdict(outcome=outcome, score=score, detail=detail, seconds=seconds)
    ((_, got_seconds, _), frame) = next(wire.frames(bytearray(wire.encode_answer(3, verdict)), wire.ANSWER))
    assert wire.decode_answer(got_seconds, frame[wire.ANSWER.size :]) == verdict


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'["correct"]', b'["good", 1.0, ""]', b'["wrong", 2.0, ""]', b'{"a": 1}', b"\xff"]
)
def test_a_body_that_is_no_verdict_is_refused(body: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        wire.decode_answer(0.0, body)


def test_a_long_detail_is_cut() -> None:
    frame = wire.encode_answer(1, Verdict.wrong("x" * 10_000))
    assert len(frame) < 700


def test_a_failure_names_the_exception_and_the_line_that_raised_it() -> None:
    class Fails(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            return {}["missing"]  # type: ignore[return-value]

    verdict = wire.judge(Fails(), Sample(completion="", ground_truth=None))
    assert verdict.outcome is Outcome.INDETERMINATE
    assert verdict.detail.startswith("KeyError: 'missing' (test_pool_worker.py:")
    assert verdict.detail.endswith(" in verify)")
    assert verdict.seconds > 0.0


@pytest.mark.parametrize("returned", [None, "correct", 1.0, True, {"outcome": "correct"}])
def test_what_is_not_a_verdict_is_a_fault_of_the_verifier(returned: Any) -> None:
    class Returns(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            result: Verdict = returned
            return result

    verdict = wire.judge(Returns(), Sample(completion="", ground_truth=None))
    assert verdict.outcome is Outcome.INDETERMINATE
    assert "instead of a Verdict" in verdict.detail


def test_judging_gives_the_verifier_the_sample_itself() -> None:
    echo, sample = Echo(), Sample(completion="x", ground_truth=[1], columns={"a": 1})
    assert wire.judge(echo, sample).outcome is Outcome.CORRECT
    assert echo.seen is sample
