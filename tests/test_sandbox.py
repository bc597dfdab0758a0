"""The sandbox: containment, cleanliness, limits, refusal where the kernel gives too little."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from verifiers.errors import SandboxError
from verifiers.sandbox import LAYERS, Limits, Sandbox
from verifiers.sandbox_probe import describe_layers
from verifiers.sandbox_values import Encoder, Opaque, decode, dump, load

ATTACKS = tomllib.loads((Path(__file__).parent / "attacks" / "containment.toml").read_text())["attack"]
SECONDS = 0.7  # for a program that would never end


@pytest.fixture(scope="module")
def sandbox():
    try:
        sandbox = Sandbox(limits=Limits(memory_mib=256))
    except SandboxError as error:
        pytest.skip(str(error))
    with sandbox:
        yield sandbox


def processes_named(name: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == name:
                    found.append(entry.name)
            except OSError:
                pass  # it ended meanwhile
    return found


def is_running(pid: int) -> bool:
    """Whether the process still runs: a dead one that nobody has waited for does not."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["name"])
def test_an_attack_on_the_machine_is_contained_and_leaves_nothing(sandbox, attack):
    started = time.monotonic()
    run = sandbox.run_program(attack["program"], seconds=SECONDS)

    if "ends" in attack:
        assert run.reason in attack["ends"], (run.reason, run.stderr_tail)
    else:
        assert run.reason == "exit 0", run.stderr_tail
        assert ast.literal_eval(run.stdout) == []
    assert time.monotonic() - started < SECONDS + 20  # hanging for ever would be the failure; not a measurement
    assert processes_named("rlvr-attack") == []
    assert children_of(sandbox.zygote_pid) == []
    assert sandbox.run_program("print(1)").stdout == "1\n"


def test_every_program_gets_the_same_fresh_state(sandbox):
    program = "import os, random\nprint(os.listdir('.'), random.random(), hash('a'), list({'a', 'b', 'c'}))"
    first, second = sandbox.run_program(program), sandbox.run_program(program)
    with Sandbox(isolation="rlimits") as other:
        third = other.run_program(program)

    assert first.stdout == second.stdout == third.stdout
    assert first.stdout.startswith("[] ")


def test_a_secret_of_the_parent_is_not_in_the_program(monkeypatch, tmp_path):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    (tmp_path / "expected.txt").write_text("42")
    program = f"import os\nprint(dict(os.environ))\nprint(os.path.exists({str(tmp_path)!r}))"
    try:
        with Sandbox() as sandbox:
            run = sandbox.run_program(program)
    except SandboxError as error:
        pytest.skip(str(error))

    assert "hunter2" not in run.stdout
    assert run.stdout.endswith("False\n")


def test_the_zygote_ends_when_its_owner_is_killed():
    script = (
        "import os, sys, time; sys.path.insert(0, '.'); from verifiers.sandbox import Sandbox\n"
        "s = Sandbox(isolation='rlimits'); p = s.open('program', {'program': 'import time; time.sleep(1000)'})\n"
        "print(s.zygote_pid, flush=True); time.sleep(1000)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert owner.stdout is not None
    with owner.stdout:
        zygote = int(owner.stdout.readline())
    time.sleep(0.1)
    (child,) = children_of(zygote)
    owner.kill()
    owner.wait()

    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in (zygote, child)):
        assert time.monotonic() < deadline, "the zygote or its child outlived its owner"
        time.sleep(0.02)


def test_a_killed_zygote_is_replaced(sandbox):
    os.kill(sandbox.zygote_pid, 9)
    while is_running(sandbox.zygote_pid):
        time.sleep(0.01)

    assert sandbox.run_program("print(2)").stdout == "2\n"


FORK = """
import os
from verifiers.sandbox import Sandbox

sandbox = Sandbox(isolation="rlimits")
pid = sandbox.zygote_pid
reader, writer = os.pipe()
if (child := os.fork()) == 0:
    try:
        os.write(writer, sandbox.run_program("print(1)").stdout.encode() + str(sandbox.zygote_pid).encode())
        sandbox.close()
    finally:
        os._exit(0)
os.waitpid(child, 0)
answer, other = os.read(reader, 1000).decode().split()
print(answer, int(other) != pid, os.path.exists(f"/proc/{other}"), sandbox.run_program("print(2)").stdout.strip())
sandbox.close()
print(os.path.exists(f"/proc/{pid}"))
"""


def test_a_forked_process_gets_a_zygote_of_its_own_and_the_first_stays():
    # in a small process of its own: with vLLM in it, pytest's may be larger than the kernel lets anyone fork
    seen = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True).stdout
    assert seen.split() == ["1", "True", "False", "2", "False"]


def test_kernel_isolation_is_refused_when_any_layer_is_missing():
    for missing in LAYERS[2:-1]:
        if missing == "no new privileges":
            continue  # the kernel's Landlock and seccomp need it, so it is never missing alone
        with pytest.raises(SandboxError, match=rf"cannot isolate untrusted code: .*{missing}: switched off"):
            Sandbox(isolation="kernel", layers=tuple(layer for layer in LAYERS if layer != missing))


def test_an_unknown_isolation_is_refused():
    with pytest.raises(SandboxError, match="'kernel' or 'rlimits'; got 'none'"):
        Sandbox(isolation="none")


def test_without_any_layer_limits_still_hold_and_daemons_are_ended():
    daemon = next(attack for attack in ATTACKS if attack["name"] == "double-forked daemon")
    with Sandbox(isolation="rlimits", layers=(), limits=Limits(memory_mib=256)) as sandbox:
        assert sandbox.missing().keys() >= {"pid namespace", "seccomp", "landlock"}
        assert sandbox.run_program("import os; print(len(os.listdir('.')))").stdout == "0\n"
        assert sandbox.run_program("open('left', 'w'); import os; os.mkdir('d'); os.chmod('d', 0)").reason == "exit 0"
        assert sandbox.run_program("while True: pass", seconds=0.3).reason == "timeout"
        assert sandbox.run_program("x = bytearray(1 << 40)").reason == "memory"
        assert sandbox.run_program(daemon["program"]).reason == "exit 0"
        assert children_of(sandbox.zygote_pid) == []
    assert processes_named("rlvr-attack") == []


def test_the_attacks_are_contained_for_an_unprivileged_user_too(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("this user is unprivileged already: every other test is this one")
    setpriv = shutil.which("setpriv")
    as_nobody = [setpriv or "", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    pythons = [sys.executable, "/usr/bin/python3"]
    runnable = (
        "import ctypes, subprocess, sys\n"
        "sys.exit(sys.version_info < (3, 11) or subprocess.call([sys.executable, '-c', '']))"
    )
    usable = [
        p
        for p in pythons
        if setpriv and subprocess.run([*as_nobody, p, "-c", runnable], capture_output=True, check=False).returncode == 0
    ]
    if not usable:
        pytest.skip("needs setpriv and a Python 3.11 that another user may run")
    package = tmp_path / "verifiers"
    package.mkdir()
    (package / "__init__.py").touch()
    source = Path(__file__).parents[1] / "verifiers"
    for path in [*source.glob("sandbox*.py"), source / "errors.py"]:
        shutil.copy(path, package)
    (tmp_path / "run.py").write_text(
        "import json, sys; from verifiers.sandbox import *\n"
        "with Sandbox() as s:\n"
        "    runs = [s.run_program(a['program'], seconds=0.7) for a in json.load(sys.stdin)]\n"
        "print(json.dumps([[r.reason, r.stdout] for r in runs]))"
    )
    for path in [tmp_path, *tmp_path.parents[:-2]]:
        path.chmod(path.stat().st_mode | 0o055)
    attacks = [attack for attack in ATTACKS if "ends" not in attack or "fork" in attack["name"]]
    done = subprocess.run(
        [*as_nobody, usable[0], "run.py"],
        input=json.dumps(attacks),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot isolate untrusted code" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr

    for attack, (reason, stdout) in zip(attacks, json.loads(done.stdout), strict=True):
        assert reason in attack.get("ends", ["exit 0"]), attack["name"]
        assert "ends" in attack or stdout == "[]\n", attack["name"]
    assert processes_named("rlvr-attack") == []


def test_large_input_and_output_within_the_limit_arrive_whole(sandbox):
    text = "0123456789" * 50_000
    assert sandbox.run_program("import sys; sys.stdout.write(sys.stdin.read())", stdin=text).stdout == text


def test_a_script_ends_as_the_interpreter_would_end_it(sandbox):
    cases = {
        "import sys; sys.exit()": "exit 0",
        "import sys; sys.exit(3)": "exit 3",
        "import sys; sys.exit('message')": "exit 1",
        "1 / 0": "exit 1",
        "def f(:": "syntax",
        "import atexit; atexit.register(print, 'bye')": "exit 0",
        "import os; os.kill(os.getpid(), 11); import ctypes; ctypes.string_at(0)": "signal 11",
    }
    assert {program: sandbox.run_program(program).reason for program in cases} == cases


def test_tracebacks_show_the_program_and_not_the_sandbox(sandbox):
    tail = sandbox.run_program("def f():\n    raise KeyError('k')\nf()").stderr_tail
    assert '"<program>", line 2, in f' in tail
    assert "sandbox_child" not in tail


def test_values_cross_as_the_data_they_hold():
    values = [
        None,
        True,
        7,
        -(2**70),
        1.5,
        "a\ud800",
        b"x",
        [1, (2, [3])],
        {"k": {1, 2}},
        frozenset([3]),
        1 + 2j,
        range(3),
        bytearray(b"y"),
    ]
    for value in values:
        back = decode(load(dump(Encoder().encode(value))))
        assert back == value
        assert type(back) is type(value)


def test_a_subclass_arrives_as_its_base_and_an_object_as_nothing():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert decode(Encoder().encode(Liar(7))) == 7
    assert type(decode(Encoder().encode(Liar(7)))) is int
    opaque = decode(Encoder().encode(object()))
    assert isinstance(opaque, Opaque)
    assert opaque != 7


COLLIDING = {"s": [{"i": hex(i * (2**61 - 1))} for i in range(1, 3000)]}
FORGED = [
    {"t": 5},
    {"d": [[1]]},
    {"i": "zz"},
    {"F": [1, 0]},
    {"r": [{"D": "1e999999999"}]},
    {"?": 1},
    {"t": [], "d": []},
    {"o": []},
    {"s": [[1]]},
    COLLIDING,
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: str(forged)[:40])
def test_a_forged_value_is_refused(forged):
    with pytest.raises(ValueError):
        decode(forged)


def test_all_processes_of_a_program_share_one_memory_limit_where_a_cgroup_can_be_made():
    bomb = next(attack for attack in ATTACKS if attack["name"] == "memory bomb of many processes")
    count = "import sys, os\nprint(1)"
    with Sandbox(isolation="rlimits", limits=Limits(memory_mib=256, total_memory_mib=300)) as sandbox:
        if sandbox.report["memory cgroup"] != "on":
            pytest.skip(sandbox.report["memory cgroup"])
        (line,) = [
            x for x in Path(f"/proc/{sandbox.zygote_pid}/cgroup").read_text().splitlines() if "python-sandbox" in x
        ]
        run = sandbox.run_program(bomb["program"], seconds=3.0)
        assert run.reason in ("signal 9", "timeout")
        assert sandbox.run_program(count).stdout == "1\n"  # the zygote outlived it
    place = line.split(":")[2].lstrip("/")
    roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
    assert not any((root / place).exists() for root in roots)


def test_the_probe_names_every_layer():
    with Sandbox(isolation="rlimits") as sandbox:
        text = describe_layers(sandbox)
    assert all(layer in text for layer in LAYERS)
