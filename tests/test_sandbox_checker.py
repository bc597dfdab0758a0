"""Tests in a process of their own: what the program hands back can neither fool them nor choose a weaker way."""

import pytest

from verifiers.base import Outcome, Sample
from verifiers.code_tests import CodeVerifier
from verifiers.errors import SandboxError

LOOP = ["for a, b in [(1, 2), (2, 3)]:\n    assert f(a) == b"]


@pytest.fixture(scope="module")
def code():
    try:
        verifier = CodeVerifier.from_options({"unfenced": True, "test_seconds": 2.0})
    except SandboxError as error:
        pytest.skip(str(error))
    yield verifier
    verifier.close()


def judge(verifier, program, *tests):
    return verifier.verify(Sample(completion=program, ground_truth=list(tests)))


AGREES = """
class Agrees:
    def __eq__(self, other): return True
    def __contains__(self, item): return True
    def __lt__(self, other): return True
    def __len__(self): return 3
"""


@pytest.mark.parametrize(
    ("program", "test"),
    [
        # `all(map(...))` ends, and is true, where the mapped function raises StopIteration
        ("def f(x): raise StopIteration", "cases = [(1, 2)]\nassert all(map(lambda c: f(c[0]) == c[1], cases))"),
        ("def f(x): raise StopAsyncIteration", "cases = [(1, 2)]\nassert all(map(lambda c: f(c[0]) == c[1], cases))"),
        (AGREES + "def f(x): return Agrees()", "for a, b in [(1, 2), (2, 3)]:\n    assert b in f(a)"),
        (AGREES + "def f(x): return Agrees()", "for a in (1, 2):\n    assert f(a) == f(a + 1)"),
        (AGREES + "def f(x): return Agrees()", "for a in (1, 2):\n    assert f(a) < a"),
        (AGREES + "def f(x): return [Agrees()]", "for a in (1, 2):\n    assert a in f(a)"),
        (AGREES + "def f(x): return {'v': Agrees()}", "for a in (1, 2):\n    assert f(a)['v'] == a"),
        (AGREES + "class S:\n    def f(self, x): return Agrees()", "for a in (1, 2):\n    assert a in S().f(a)"),
    ],
)  # fmt: skip
def test_objects_and_exceptions_that_agree_with_a_loop_are_wrong(code, program, test):
    verdict = judge(code, program, test)
    assert verdict.outcome is Outcome.WRONG
    assert "weaker" not in verdict.detail


@pytest.mark.parametrize("returned", ["O()", "[O()]", "{1: O()}", "{'a': [O()]}", "(O(), {2: (O(),)})", "iter([O()])"])
@pytest.mark.parametrize("handed_back", ["y", "[y]", "{1: y}"])
def test_a_program_cannot_choose_the_weaker_way_by_what_it_returns(code, returned, handed_back):
    program = f"{AGREES}\nclass O: pass\ndef g(x): return {returned}\ndef f(x): return Agrees()"
    verdict = judge(code, program, f"for a in (1, 2):\n    y = g(a)\n    assert f({handed_back}) == a")
    assert verdict.outcome is Outcome.WRONG
    assert "weaker" not in verdict.detail


def test_a_program_cannot_choose_the_weaker_way_by_what_it_raises(code):
    program = f"{AGREES}\ndef g(x): raise ValueError\ndef f(x): return Agrees()"
    test = "try:\n    y = g(1)\nexcept ValueError as error:\n    y = error\nassert f(y) == 1"
    verdict = judge(code, program, test)
    assert verdict.outcome is Outcome.WRONG
    assert "weaker" not in verdict.detail


def test_objects_that_the_tests_make_answer_for_themselves(code):
    program = (
        "class Bag:\n"
        "    def __init__(self, *items): self.items = list(items)\n"
        "    def __contains__(self, item): return item in self.items\n"
        "    def __eq__(self, other): return sorted(self.items) == sorted(other.items)\n"
        "def merge(a, b): return Bag(*a.items, *b['bag'].items)\n"
    )
    test = (
        "for n in (1, 2):\n"
        "    bag = Bag(n, 5)\n"
        "    assert n in bag and 7 not in bag\n"
        "    assert merge(bag, {'bag': Bag(9)}) == Bag(9, 5, n)\n"
        "    assert merge(bag, {'bag': Bag(9)}) != Bag(8, 5, n)"
    )
    verdict = judge(code, program, test)
    assert verdict.outcome is Outcome.CORRECT, verdict.detail
    assert "weaker" not in verdict.detail
