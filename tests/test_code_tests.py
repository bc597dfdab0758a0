"""The code verifiers: right programs pass, attacks do not, verdicts say why."""

import base64
import gzip
import json
import os
import pickle
import time
import tomllib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.base import Outcome, Sample
from verifiers.code_convert import plan_tests
from verifiers.code_ground_truth import read_cases, read_tests
from verifiers.code_tests import CodeStdioVerifier, CodeVerifier
from verifiers.errors import GroundTruthError, SandboxError, VerifierOptionError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec
from verifiers.sandbox_values import Encoder, decode, dump, load

ATTACKS = Path(__file__).parent / "attacks"
CHEATS = tomllib.loads((ATTACKS / "cheats.toml").read_text())["attack"]
HONEST = tomllib.loads((ATTACKS / "honest.toml").read_text())["program"]
STDIO_CHEATS = tomllib.loads((ATTACKS / "stdio_cheats.toml").read_text())["attack"]
DATA = Path(__file__).parents[1] / "../shared/data"

CALLS = ["assert add(2, 3) == 5", "assert add(-4, 1) == -3", "assert add(100, 250) == 350"]
# the same task as a suite that cannot be split into calls, and so runs in a process of its own
CHECKER = {
    "test": "def check(candidate):\n"
    "    for a, b, total in [(2, 3, 5), (-4, 1, -3), (100, 250, 350)]:\n"
    "        assert candidate(a, b) == total",
    "entry_point": "add",
}


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def build(kind, **options):
    try:
        return kind.from_options(options)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def code():
    verifier = build(CodeVerifier, test_seconds=0.4, program_seconds=5.0, memory_mib=256, processes=8)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def patient():
    verifier = build(CodeVerifier, test_seconds=10.0, program_seconds=30.0)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def stdio():
    verifier = build(CodeStdioVerifier, test_seconds=0.5)
    yield verifier
    verifier.close()


def judge(verifier, program, ground_truth):
    return verifier.verify(Sample(completion=fenced(program), ground_truth=ground_truth))


@pytest.mark.parametrize("attack", CHEATS, ids=lambda attack: attack["name"])
def test_a_cheat_is_wrong_whichever_way_the_tests_run(code, attack):
    for ground_truth in (CALLS, CHECKER):
        verdict = judge(code, attack["program"], ground_truth)
        assert (verdict.outcome, verdict.score) == (Outcome.WRONG, 0.0), verdict.detail
    assert not Path("/tmp/pwned").exists()


@pytest.mark.parametrize("program", HONEST, ids=lambda program: program["name"])
def test_an_honest_program_is_correct_whichever_way_the_tests_run(patient, program):
    for ground_truth in (CALLS, CHECKER):
        verdict = judge(patient, program["program"], ground_truth)
        assert verdict.outcome is Outcome.CORRECT, verdict.detail


def test_the_two_suites_run_in_the_two_ways(code):
    right = "def add(a, b):\n    return a + b"
    assert code.report(right, CALLS).mode == "calls"
    assert code.report(right, CHECKER).mode == "checker"


@pytest.mark.parametrize("attack", STDIO_CHEATS, ids=lambda attack: attack["name"])
def test_a_cheating_script_is_wrong(stdio, attack):
    cases = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -4\n", "output": "6\n"}]
    assert judge(stdio, attack["program"], cases).outcome is Outcome.WRONG
    honest = "a, b = map(int, input().split())\nif __name__ == '__main__':\n    print(a + b)"
    assert judge(stdio, honest, cases).outcome is Outcome.CORRECT


def test_truth_tests_are_not_fooled_by_an_object_that_agrees_with_everything(code):
    tests = ["assert even(4)", "assert not even(3)", "assert even(8) is True", "assert even(0) == True"]
    assert judge(code, "def even(n): return n % 2 == 0", tests).outcome is Outcome.CORRECT
    for liar in ("True", "1", "__import__('unittest.mock').mock.ANY", "type('T', (), {'__eq__': lambda s, o: True})()"):
        assert judge(code, f"def even(n): return {liar}", tests).outcome is Outcome.WRONG


def test_expected_values_never_reach_the_program():
    plan = read_tests(
        {"tests": ["assert f([1, 2]) == 777", "assert abs(g(2) - 888.5) < 1e-6", "assert h(1) in (999, h(2))"]}
    )
    assert plan.split is not None
    assert [call for test in plan.split for call in test.calls] == ["f([1, 2])", "g(2)", "h(1)", "h(2)"]


def test_data_of_the_set_up_stays_with_the_tests_when_they_have_a_process_of_their_own():
    plan = read_tests(
        {"tests": ["for x, y in EXPECTED: assert f(x) == y"], "setup": "import math\nEXPECTED = [(1, 777)]"}
    )
    assert plan.split is None
    assert plan.definitions == "import math"


STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __eq__(self, other): return self.items == other.items
    def pop(self): """
STACK_TESTS = [
    "s = Stack()\ns.push(3)\ns.push(4)\nassert s.pop() == 4\nassert len(s) == 1\n"
    "assert list(s) == [3]\nassert 3 in s\nassert s[0] == 3",
    "try:\n    Stack().pop()\nexcept IndexError:\n    pass\nelse:\n    raise AssertionError('no error')",
    "assert Stack() == Stack()",
]


def test_tests_with_objects_methods_and_exceptions_run_apart_from_the_program(code):
    report = code.report(STACK + "return self.items.pop()", STACK_TESTS)
    assert (report.mode, report.results) == ("checker", [None, None, None])


@pytest.mark.parametrize(
    "body",
    [
        "return self.items.pop(0)",
        "return self.items.pop() if self.items else 0",
        "__import__('os')._exit(0)",
        "raise SystemExit(0)",
        "return __import__('unittest.mock').mock.ANY",
        "return Stack",
    ],
)
def test_a_wrong_object_is_wrong_in_a_process_apart(code, body):
    assert judge(code, STACK + body, STACK_TESTS).outcome is Outcome.WRONG


def test_tests_that_hand_over_their_own_objects_run_inside_marked_weaker_or_are_refused(code):
    tests = ["def double(x): return 2 * x\nassert apply(double, 4) == 8"]
    program = "def apply(f, x): return f(x)"
    verdict = judge(code, program, tests)
    assert verdict.outcome is Outcome.CORRECT
    assert "weaker" in verdict.detail
    assert judge(code, "def apply(f, x): return x", tests).outcome is Outcome.WRONG
    assert judge(code, "def apply(f, x): raise SystemExit(0)", tests).outcome is Outcome.WRONG
    assert judge(code, "import os\ndef apply(f, x): os._exit(0)", tests).outcome is Outcome.WRONG

    strict = build(CodeVerifier, weaker_tests="refuse")
    verdict = judge(strict, program, tests)
    strict.close()
    assert verdict.outcome is Outcome.INDETERMINATE
    assert "weaker_tests = 'refuse'" in verdict.detail


def test_the_detail_names_the_failing_test_the_reason_and_the_output(code):
    report = code.report("print('hello')\ndef add(a, b):\n    return a - b if a > 50 else a + b", CALLS)
    assert report.results[:2] == [None, None]
    assert report.results[2] == "add(100, 250) gave -150; assert add(100, 250) == 350"
    assert (report.reason, report.stdout_tail) == ("ok", "hello\n")
    detail = judge(code, "import sys\nsys.stderr.write('oops')\ndef add(a, b): return 5", CALLS).detail
    assert detail.startswith("1 of 3 tests [.F-]; test 2: add(-4, 1) gave 5; assert add(-4, 1) == -3; ended: ok; cpu ")
    assert detail.endswith("stderr ends 'oops'")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def add(a, b:", "syntax"),
        ("1 / 0", "exception"),
        ("import sys; sys.exit(0)", "exit"),
        ("import os; os._exit(3)", "exit 3"),
        ("x = bytearray(1 << 40)", "memory"),
        ("while True: pass", "timeout"),
        ("print('x' * (1 << 22))", "output"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
    ],
)
def test_the_reason_says_how_a_program_ended(code, program, reason):
    assert code.report(program, CALLS).reason == reason


def test_pass_rate_counts_every_test_even_after_one_that_hangs():
    verifier = build(CodeVerifier, score="pass_rate", test_seconds=0.4)
    program = "def add(a, b):\n    while a < 0: pass\n    return a + b"
    verdict = judge(verifier, program, CALLS)
    assert (verdict.outcome, verdict.score) == (Outcome.WRONG, 2 / 3)
    assert "2 of 3 tests [.F.]" in verdict.detail
    verifier.close()

    strict = build(CodeVerifier, score="pass_rate", pass_rate_threshold=0.7, test_seconds=0.4)
    assert judge(strict, program, CALLS).score == 0.0  # 2/3 < 0.7
    strict.close()


def test_one_test_that_hangs_costs_its_limit_and_the_verifier_goes_on(code):
    assert code.report("def add(a, b):\n    while True: pass", CALLS).results == ["timeout", "not run", "not run"]
    assert judge(code, "def add(a, b): return a + b", CALLS).outcome is Outcome.CORRECT


def test_a_reply_without_a_program_is_wrong_and_an_option_takes_it_whole(code):
    sample = Sample(completion="def add(a, b): return a + b", ground_truth=CALLS)
    assert "no fenced block" in code.verify(sample).detail
    verifier = build(CodeVerifier, unfenced=True)
    assert verifier.verify(sample).outcome is Outcome.CORRECT
    verifier.close()


def test_the_last_python_block_is_the_program(code):
    reply = fenced("def add(a, b): return 0") + "\nBetter:\n~~~py\ndef add(a, b): return a + b\n~~~\n```text\n5\n```"
    assert code.verify(Sample(completion=reply, ground_truth=CALLS)).outcome is Outcome.CORRECT


def test_ground_truth_forms_of_public_data_sets_mean_the_same(code):
    right = "def add(a, b): return a + b"
    forms = [
        CALLS,
        json.dumps(CALLS),
        {"tests": CALLS, "entry_point": "add", "setup": "import math"},
        {"test_list": CALLS, "test_setup_code": "", "challenge_test_list": [], "task_id": 3},
        {
            "test": "def check(candidate):\n    assert candidate(2, 3) == 5, 'no'",
            "entry_point": "add",
            "prompt": "from typing import List\n",
        },
        "assert add(2, 3) == 5",
    ]
    for form in forms:
        code.check_ground_truth(form)
        assert judge(code, right, form).outcome is Outcome.CORRECT, form
        assert judge(code, "def add(a, b): return 1", form).outcome is Outcome.WRONG, form


def test_pickled_tests_are_refused_with_a_message_and_never_loaded(code):
    class Bomb:
        def __reduce__(self):
            return (Path("/tmp/pwned").touch, ())

    for data in (pickle.dumps(Bomb()), zlib.compress(pickle.dumps(Bomb()))):
        with pytest.raises(GroundTruthError, match="is pickled"):
            code.check_ground_truth(base64.b64encode(data).decode())
    assert not Path("/tmp/pwned").exists()


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ([], "one test or more"),
        ([3], "one test or more"),
        (["assert f(1 =="], "not Python"),
        ({"tests": CALLS, "entrypoint": "add"}, "unknown keys"),
        ({"tests": CALLS, "test": "x"}, "both 'tests' and 'test'"),
        ({"test": "def check(candidate): assert candidate(1) == 2"}, "needs an 'entry_point'"),
        (["x = 3"], "use nothing of the program"),
        (5, "list of asserts"),
        ("nonsense", "JSON or Python"),
    ],
)
def test_a_ground_truth_that_cannot_be_read_is_refused_with_the_reason(code, ground_truth, message):
    with pytest.raises(GroundTruthError, match=message):
        code.check_ground_truth(ground_truth)


def test_stdio_compares_lines_with_the_options_given():
    cases = [{"input": "", "output": "0.3333 ok \nlast\n"}]
    program = "print(f'{1/3:.6f} ok')\nprint('last')\nprint()"
    exact = build(CodeStdioVerifier)
    close = build(CodeStdioVerifier, float_tolerance=1e-3)
    strict = build(CodeStdioVerifier, float_tolerance=1e-3, ignore_trailing_space=False)
    verdicts = [judge(verifier, program, cases).outcome for verifier in (exact, close, strict)]
    for verifier in (exact, close, strict):
        verifier.close()
    assert verdicts == [Outcome.WRONG, Outcome.CORRECT, Outcome.WRONG]


def test_stdio_ground_truth_is_checked(stdio):
    assert read_cases('[{"input": "1", "output": "2"}]', longest_output=10)[0].stdout == "2"
    for bad in (
        [],
        [{"input": "1"}],
        [{"input": 1, "output": "2"}],
        {"input": "1", "output": "2"},
        [{"input": "", "output": "x" * (2 << 20)}],
        [{"input": "1", "output": ""}, {"input": "2", "output": "\n"}],
    ):
        with pytest.raises(GroundTruthError):
            stdio.check_ground_truth(bad)


def test_options_are_checked():
    with pytest.raises(VerifierOptionError, match="program_seconds"):
        CodeVerifier.from_options({"program_seconds": 100.0})
    with pytest.raises(VerifierOptionError, match="does nothing unless"):
        CodeVerifier.from_options({"pass_rate_threshold": 0.5})


def test_a_test_that_is_not_a_call_and_a_literal_is_not_split():
    for source in ("assert f(1).startswith('a')", "assert [f(x) for x in (1, 2)] == [1, 2]", "x = f(1)\nassert x == 2"):
        assert plan_tests((source,), entry_point=None, setup="").split is None


def test_in_the_pool_a_hang_delays_no_other_sample_and_nothing_is_left():
    build(CodeVerifier).close()  # skips where the machine cannot isolate
    right = Sample(completion=fenced("def add(a, b): return a + b"), ground_truth=CALLS)
    hang = Sample(completion=fenced("def add(a, b):\n    while True: pass"), ground_truth=CALLS)
    spec = VerifierSpec(name="code", options={"test_seconds": 1.5})
    order = []
    with VerifierPool({"code": spec}, workers=2) as pool:
        for key in range(20):
            pool.submit(key, "code", hang if key == 3 else right)
        while pool.pending:
            time.sleep(0.005)
            for key, verdict in pool.poll():
                order.append(key)
                assert verdict.outcome is (Outcome.WRONG if key == 3 else Outcome.CORRECT), verdict
        zygotes = own_zygotes()
    assert len(order) == 20
    assert order[-1] == 3
    assert len(zygotes) >= 2  # one of each worker

    deadline = time.monotonic() + 20
    while left := [pid for pid in zygotes if Path(f"/proc/{pid}/cmdline").exists()]:
        assert time.monotonic() < deadline, f"zygotes {left} outlived their workers"
        time.sleep(0.05)


def own_zygotes() -> set[int]:
    """Zygotes below this process, but not its own children (the fixtures')."""
    parents = {}
    zygotes = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if b"sandbox_zygote.py" in (entry / "cmdline").read_bytes():
                    zygotes.add(int(entry.name))
            except OSError:
                pass  # it ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return {pid for pid in zygotes if parents[pid] != os.getpid() and is_ours(pid)}


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary()
keys = st.text(max_size=5) | st.integers()
plain_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(plain_values)
def test_any_plain_value_survives_the_crossing(value):
    assert decode(load(dump(Encoder().encode(value)))) == value


def humaneval():
    path = DATA / "humaneval/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no public data at {path}")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return [
        (row["prompt"] + row["canonical_solution"], {"test": row["test"], "entry_point": row["entry_point"]})
        for row in rows
    ]


def mbpp():
    path = DATA / "mbpp/mbpp.jsonl"
    if not path.exists():
        pytest.skip(f"no public data at {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["code"], {"test_list": row["test_list"], "test_setup_code": row["test_setup_code"]}) for row in rows]


@pytest.mark.parametrize(("rows", "count"), [(humaneval, 164), (mbpp, 974)], ids=["HumanEval", "MBPP"])
def test_every_reference_solution_is_correct_and_no_suite_needs_the_weaker_way(patient, rows, count):
    judged = [(patient.report(program, tests), program) for program, tests in rows()]
    assert [(report.results, program) for report, program in judged if report.passed < len(report.results)] == []
    assert len(judged) == count
    assert {report.mode for report, _ in judged} <= {"calls", "checker"}
