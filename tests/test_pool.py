"""The verifier pool: whatever a verifier does, it costs its own sample and nobody else's."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import pytest

from verifiers.base import Outcome, Sample, Verdict
from verifiers.errors import PluginError, PoolError, UnknownVerifierError, VerifierOptionError
from verifiers.pool import VerifierPool
from verifiers.registry import VerifierSpec

HOSTILE = str(pathlib.Path(__file__).with_name("hostile_verifiers.py"))


def spec(name: str) -> VerifierSpec:
    return VerifierSpec(name=name, plugins=(HOSTILE,))


def sample(completion: str, ground_truth: object = None) -> Sample:
    return Sample(completion=completion, ground_truth=ground_truth)


def judge_all(pool: VerifierPool, name: str, completions: list[str]) -> list[Verdict]:
    for index, completion in enumerate(completions):
        pool.submit(index, name, sample(completion))
    verdicts = dict(pool.wait())
    assert sorted(verdicts) == list(range(len(completions)))
    return [verdicts[index] for index in range(len(completions))]


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"still not true after a minute: {what}")


REASONS = {
    "hang": "timeout",
    "hang_in_c": "timeout",
    "hang_deaf_to_signals": "timeout",
    "stop_itself": "timeout",
    "crash_in_c": "SIGSEGV",
    "leave": "exited with status 3",
    "raise_base_exception": "KeyboardInterrupt: from a verifier",
    "leave_politely": "SystemExit: goodbye",
    "eat_memory": "MemoryError",
    "close_descriptors": "exited with status 1",
    "recurse": "RecursionError",
    "return_none": "returned None",
    "raise_unreadable": "Unreadable: its message cannot be read",
}


@pytest.mark.parametrize("behaviour", REASONS)
def test_a_misbehaving_sample_costs_its_own_verdict_and_no_other(behaviour: str) -> None:
    timeout_seconds = 1.0 if REASONS[behaviour] == "timeout" else 60.0
    with VerifierPool({"hostile": spec("hostile")}, workers=2, timeout_seconds=timeout_seconds, memory_mib=512) as pool:
        verdicts = judge_all(pool, "hostile", ["ok"] * 10 + [behaviour] + ["ok"] * 10)
    guilty = verdicts.pop(10)
    assert guilty.outcome is Outcome.INDETERMINATE
    assert REASONS[behaviour] in guilty.detail
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


def test_a_crash_shows_where_it_happened() -> None:
    with VerifierPool({"hostile": spec("hostile")}) as pool:
        (verdict,) = judge_all(pool, "hostile", ["crash_in_c"])
    assert "Fatal Python error: Segmentation fault" in verdict.detail


def test_printing_megabytes_changes_no_verdict_and_reaches_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with VerifierPool({"hostile": spec("hostile")}, timeout_seconds=60.0) as pool:
        verdicts = judge_all(pool, "hostile", ["ok", "print", "ok"])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT] * 3
    assert capfd.readouterr() == ("", "")


def test_64_hanging_samples_among_4096_leave_the_other_4032_verdicts_alone() -> None:
    completions = ["hang_asleep" if index % 64 == 5 else "ok" for index in range(4096)]
    with VerifierPool({"hostile": spec("hostile")}, workers=4, timeout_seconds=0.5) as pool:
        verdicts = judge_all(pool, "hostile", completions)
    hung = [index for index, verdict in enumerate(verdicts) if verdict.outcome is Outcome.INDETERMINATE]
    assert hung == list(range(5, 4096, 64))
    assert collections.Counter(verdict.outcome for verdict in verdicts)[Outcome.CORRECT] == 4032


def test_a_sample_that_kills_the_supervisor_is_found_and_the_rest_is_judged() -> None:
    with VerifierPool({"hostile": spec("hostile")}, workers=2, timeout_seconds=20.0) as pool:
        verdicts = judge_all(pool, "hostile", ["ok"] * 5 + ["kill_parent"] + ["ok"] * 5)
        again = judge_all(pool, "hostile", ["ok"] * 3)
    guilty = verdicts.pop(5)
    assert guilty.outcome is Outcome.INDETERMINATE
    assert "supervisor died" in guilty.detail
    assert {verdict.outcome for verdict in [*verdicts, *again]} == {Outcome.CORRECT}


def test_a_supervisor_killed_from_outside_is_replaced() -> None:
    with VerifierPool({"hostile": spec("hostile")}, timeout_seconds=20.0) as pool:
        judge_all(pool, "hostile", ["ok"])
        assert pool._supervisor is not None
        pool._supervisor._process.kill()
        verdicts = judge_all(pool, "hostile", ["ok"] * 50)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


def test_verdicts_stream_back_while_another_sample_hangs() -> None:
    with VerifierPool({"hostile": spec("hostile")}, workers=2, timeout_seconds=600.0) as pool:
        pool.submit("hung", "hostile", sample("hang_asleep"))
        for index in range(20):
            pool.submit(index, "hostile", sample("ok"))
        arrived: dict[object, Verdict] = {}

        def all_but_one_arrived() -> bool:
            arrived.update(pool.poll())
            return len(arrived) == 20

        until(all_but_one_arrived, "20 verdicts while one sample hangs, those queued behind it included")
        assert pool.pending == 1


def test_a_verifier_with_its_own_limit_is_held_to_it() -> None:
    with VerifierPool({"impatient": spec("impatient")}, timeout_seconds=600.0) as pool:
        (verdict,) = judge_all(pool, "impatient", ["x"])
    assert "no verdict within 0.25 s" in verdict.detail


def test_a_verifier_that_cannot_hang_runs_in_the_caller_without_any_process() -> None:
    with VerifierPool({"in_caller": spec("in_caller")}) as pool:
        pool.submit("key", "in_caller", sample("pid"))
        assert pool.pending == 1
        assert [(key, verdict.detail) for key, verdict in pool.poll()] == [("key", str(os.getpid()))]
        assert pool._supervisor is None


def test_workers_are_separate_processes_built_once_and_shared() -> None:
    with VerifierPool({"own": spec("own_process")}) as pool:
        pid, built_here = judge_all(pool, "own", ["pid", "built here"])
    assert int(pid.detail) != os.getpid()
    assert built_here.detail == "False"  # built in the supervisor, before the fork


def test_workers_have_one_thread_a_fixed_hash_seed_low_priority_and_a_memory_limit() -> None:
    with VerifierPool({"own": spec("own_process")}, niceness=3, memory_mib=512) as pool:
        threads, seed, niceness, limit = judge_all(
            pool, "own", ["OMP_NUM_THREADS", "PYTHONHASHSEED", "niceness", "address space"]
        )
    assert (threads.detail, seed.detail) == ("1", "0")
    assert int(niceness.detail) == min(19, os.nice(0) + 3)
    assert 512 * 2**20 < int(limit.detail) < 8 * 2**30


def test_a_plugin_that_starts_threads_is_built_in_every_worker(tmp_path: pathlib.Path) -> None:
    plugin = tmp_path / "threaded.py"
    plugin.write_text(
        "import threading, time\n"
        f"exec(open({HOSTILE!r}).read().replace('register(', 'register(\"threaded_\" + '))\n"
        "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    )
    with VerifierPool({"own": VerifierSpec(name=f"{plugin}:OwnProcess")}, workers=2) as pool:
        verdicts = judge_all(pool, "own", ["built here"] * 4)
    assert {verdict.detail for verdict in verdicts} == {"True"}


def test_a_leaking_verifier_is_replaced_before_an_innocent_sample_runs_out_of_memory() -> None:
    # 200 samples keep 800 MiB; a worker has 512 MiB
    with VerifierPool({"leaks": spec("leaks")}, memory_mib=512, timeout_seconds=60.0) as pool:
        verdicts = judge_all(pool, "leaks", ["x"] * 200)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}
    assert len({verdict.detail for verdict in verdicts}) > 1  # more than one worker process


def test_what_is_not_a_verdict_is_indeterminate() -> None:
    with VerifierPool({"ill_formed": spec("ill_formed")}) as pool:
        text, outcome = judge_all(pool, "ill_formed", ["text", "outcome"])
    assert "instead of a Verdict" in text.detail
    assert "not a verdict: 'perfect'" in outcome.detail


def test_a_sample_that_is_not_json_is_indeterminate_and_says_so() -> None:
    with VerifierPool({"hostile": spec("hostile")}) as pool:
        pool.submit(1, "hostile", sample("ok", ground_truth={1, 2}))
        pool.submit(2, "hostile", sample("ok"))
        verdicts = dict(pool.wait())
    assert verdicts[1].outcome is Outcome.INDETERMINATE
    assert "not JSON" in verdicts[1].detail
    assert verdicts[2].outcome is Outcome.CORRECT


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "é\u202e", "x" * 3_000_000])
def test_any_text_survives_the_way_to_a_worker(text: str) -> None:
    echo = VerifierSpec(name="combine", options={"verifiers": [{"name": "exact"}], "mode": "all"})
    with VerifierPool({"echo": echo}) as pool:
        pool.submit(0, "echo", sample(f"a{text}b", ground_truth=f"a{text}b"))
        ((_, verdict),) = pool.wait()
    assert verdict.outcome is Outcome.CORRECT


def test_workers_ignore_the_interrupt_key() -> None:
    with VerifierPool({"own": spec("own_process")}, timeout_seconds=60.0) as pool:
        (before,) = judge_all(pool, "own", ["pid"])
        os.kill(int(before.detail), signal.SIGINT)
        (after,) = judge_all(pool, "own", ["pid"])
    assert before.detail == after.detail


def test_workers_end_with_the_pool() -> None:
    with VerifierPool({"own": spec("own_process"), "hostile": spec("hostile")}, timeout_seconds=600.0) as pool:
        (verdict,) = judge_all(pool, "own", ["pid"])
        pool.submit(0, "hostile", sample("hang"))
    until(lambda: not is_running(int(verdict.detail)), "the worker is gone")


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


SCRIPT = """
    import sys, threading, time
    from verifiers import Sample, VerifierPool, VerifierSpec
    print("main runs")
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    names = ("own_process", "hostile")
    specs = {{name: VerifierSpec(name=name, plugins=({hostile!r},)) for name in names}}
    pool = VerifierPool(specs, timeout_seconds=600.0)
    pool.submit(0, "own_process", Sample(completion="pid", ground_truth=None))
    print(pool.wait()[0][1].detail)
    pool.submit(1, "hostile", Sample(completion="hang_deaf_to_signals", ground_truth=None))
    print("waiting", flush=True)
    time.sleep(3600)
"""


def test_workers_die_with_a_killed_caller_and_never_run_its_main(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    script = tmp_path / "caller.py"
    script.write_text(textwrap.dedent(SCRIPT.format(hostile=HOSTILE)))
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as caller:
        assert caller.stdout is not None
        first, pid, last = (caller.stdout.readline().strip() for _ in range(3))
        assert (first, last) == ("main runs", "waiting")
        assert is_running(int(pid))
        caller.kill()
        until(lambda: not is_running(int(pid)), "the worker is gone")
        assert caller.stdout.read() == ""


def test_a_pool_works_in_a_caller_with_threads_and_from_another_thread() -> None:
    outcomes: list[Outcome] = []

    def use() -> None:
        with VerifierPool({"hostile": spec("hostile")}) as pool:
            outcomes.extend(verdict.outcome for verdict in judge_all(pool, "hostile", ["ok", "leave", "ok"]))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collections.Counter(outcomes) == {Outcome.CORRECT: 4, Outcome.INDETERMINATE: 2}


def test_wrong_use_is_refused_with_a_remedy() -> None:
    with pytest.raises(UnknownVerifierError, match="Did you mean 'gsm8k'"):
        VerifierPool({"g": VerifierSpec(name="gms8k")})
    with pytest.raises(VerifierOptionError, match="Its options are: mode"):
        VerifierPool({"e": VerifierSpec(name="exact", options={"mod": "choice"})})
    with pytest.raises(PoolError, match="workers above 0; got 0"):
        VerifierPool({}, workers=0)
    with pytest.raises(PluginError, match="does not exist"):
        VerifierPool({"x": VerifierSpec(name="x", plugins=("absent.py",))})
    pool = VerifierPool({"exact": VerifierSpec(name="exact")})
    with pytest.raises(UnknownVerifierError, match="it was given: exact"):
        pool.submit(0, "exactly", sample("x"))
    pool.close()
    pool.close()
    with pytest.raises(PoolError, match="is closed"):
        pool.poll()


def test_a_verifier_that_cannot_be_built_in_a_worker_stops_the_pool_with_the_reason() -> None:
    with VerifierPool({"broken": spec("not_buildable")}) as pool:
        pool.submit(0, "broken", sample("x"))
        with pytest.raises(PoolError, match="RuntimeError: no model file here"):
            pool.wait()
