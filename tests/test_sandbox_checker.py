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


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(xs): xs.reverse()", "xs = [1, 2, 3]\nf(xs)\nassert xs == [3, 2, 1]"),
        ("class S:\n    def f(self, xs): xs[:] = [[0]]", "xs = [[1], [2]]\nS().f(xs)\nassert xs == [[0]]"),
        ("def f(d, s): d['k'] = 1; s.add(2)", "d, s = {}, {1}\nf(d, s)\nassert (d, s) == ({'k': 1}, {1, 2})"),
    ],
)
def test_a_call_made_for_what_it_does_to_its_arguments_does_it(code, program, test):
    verdict = judge(code, program, test)
    assert verdict.outcome is Outcome.CORRECT, verdict.detail
    idle = "class S:\n    def f(self, xs): pass\ndef f(*arguments): pass"
    assert judge(code, idle, test).outcome is Outcome.WRONG


def test_a_call_made_for_its_result_gets_copies(code):
    # the emptied list would make both sides equal
    test = "for xs in ([1, 2], [3]):\n    assert f(xs) == sum(xs)"
    assert judge(code, "def f(xs): xs.clear(); return 0", test).outcome is Outcome.WRONG
    assert judge(code, "def f(xs): return sum(xs)", test).outcome is Outcome.CORRECT


def test_operators_of_objects_that_the_tests_make_are_the_program_s(code):
    program = (
        "class Vector:\n"
        "    def __init__(self, x, y): self.x, self.y = x, y\n"
        "    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)\n"
        "    def __rmul__(self, k): return Vector(k * self.x, k * self.y)\n"
        "    def __neg__(self): return Vector(-self.x, -self.y)\n"
        "    def __lt__(self, other): return (self.x, self.y) < (other.x, other.y)\n"
        "    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)\n"
    )
    test = (
        "for n in (1, 2):\n"
        "    total = Vector(n, 2) + Vector(3, 4)\n"
        "    assert (total.x, total.y) == (n + 3, 6) and total == Vector(n + 3, 6)\n"
        "    assert (-total).x == -n - 3 and (3 * Vector(n, 1)).x == 3 * n and Vector(1, 1) < Vector(n, 2)"
    )
    verdict = judge(code, program, test)
    assert verdict.outcome is Outcome.CORRECT, verdict.detail
    assert "weaker" not in verdict.detail
    assert judge(code, program.replace("self.y + other.y", "self.y"), test).outcome is Outcome.WRONG
