"""Run untrusted Python here, fast, with the kernel between it and the machine.

A `Sandbox` owns one zygote process (sandbox_zygote.py) and forks one child per program from it: about 3 ms with every
layer on. The child has its own user, mount, pid, network, ipc and uts namespaces, sees the interpreter's standard
library (read-only), /dev/null and a private scratch directory of limited size, and nothing else of the machine;
Landlock repeats that for files, seccomp allows the system calls that a Python program needs, and it has no
capabilities, whoever started it. With its first process everything in it ends.

Not covered:

- a bug in the Linux kernel or the processor: the walls are the kernel's own. For hostile people rather than a policy
  under optimisation, put a virtual machine around the whole run;
- side channels: timing, cache, load of the machine. A program can burn its CPU and memory allowance, and slow its
  neighbours by that;
- memory is limited per process and processes per program, so a program can hold `memory_mib` x `processes` where no
  memory cgroup is writable; the scratch directory counts as memory;
- the program's view of its own answers: it shares an address space with the code that encodes what it returns
  (harmless, because expected values and the comparison are here, in the parent). Only tests run `inside` depend on it,
  and they say so;
- packages outside the standard library, and anything that needs exec, /proc, sockets, shared memory or a compiler: not
  available;
- isolation="rlimits": whichever layers work are put up, and possibly none but limits. Only for programs you would run
  by hand.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from verifiers.errors import SandboxError
from verifiers.sandbox_cgroup import MemoryCgroup
from verifiers.sandbox_link import ZygoteLink
from verifiers.sandbox_process import ProcessEnded, SandboxedProcess

LAYERS = (
    "unprivileged user",
    "user namespace",
    "mount namespace",
    "pid namespace",
    "network namespace",
    "ipc namespace",
    "uts namespace",
    "no new privileges",
    "capabilities",
    "landlock",
    "seccomp",
    "rlimits",
)
"""The layers that isolation "kernel" needs."""
OPTIONAL_LAYERS = ("memory cgroup",)
"""Put up where this user may."""
ALL_LAYERS = LAYERS + OPTIONAL_LAYERS

Isolation = Literal["kernel", "rlimits"]
_START_SECONDS = 30.0
_ANSWER_SECONDS = 20.0  # of the zygote; the kernel ends a process of a pid namespace in milliseconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use."""

    memory_mib: int = 512
    """Address space of each process."""
    total_memory_mib: int = 1024
    """Memory of all its processes together, where a memory cgroup can be made."""
    processes: int = 32
    """Processes and threads alive at once."""
    cpu_seconds: int = 30
    """CPU time of each process; the kernel kills it there even if the parent is gone."""
    open_files: int = 128
    scratch_mib: int = 16
    """Size of the scratch directory, and of any one file."""
    output_kib: int = 1024
    """Standard output and error together; a program that writes more is killed."""


class Sandbox:
    """Runs programs, one at a time, in children of a zygote that lives as long as this object.

    >>> with Sandbox(isolation="rlimits") as sandbox:
    ...     run = sandbox.run_program("print(input()[::-1])", stdin="abc")
    >>> run.stdout, run.reason
    ('cba\\n', 'exit 0')
    """

    def __init__(
        self,
        *,
        isolation: Isolation = "kernel",
        limits: Limits | None = None,
        layers: tuple[str, ...] = ALL_LAYERS,
    ) -> None:
        """Start the zygote and check its walls.

        Args:
            isolation: "kernel" refuses to start unless every layer stands; "rlimits" takes what there is.
            limits: what one program may use.
            layers: layers to attempt; fewer only with "rlimits", to measure what each costs.

        Raises:
            SandboxError: a layer is missing, or the zygote did not start.
        """
        if isolation not in ("kernel", "rlimits"):
            raise SandboxError(f"isolation must be 'kernel' or 'rlimits'; got {isolation!r}")
        self.isolation = isolation
        self.limits = limits or Limits()
        self.report: dict[str, str] = {}
        """Layer to "on", or why it is not."""
        self._layers = layers
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._link: ZygoteLink | None = None
        self._cgroup: MemoryCgroup | None = None
        self._owner = os.getpid()
        self._start()
        atexit.register(self.close)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def zygote_pid(self) -> int:
        """Process id of the zygote. Raises SandboxError when the sandbox is closed."""
        if self._zygote is None:
            raise SandboxError("the sandbox is closed; build a new one")
        return self._zygote.pid

    def missing(self) -> dict[str, str]:
        """Layers that isolation "kernel" needs and that do not stand, with the reason."""
        return {name: self.report.get(name, "not reported") for name in LAYERS if self.report.get(name) != "on"}

    def _start(self) -> None:
        if sys.platform != "linux":
            raise SandboxError(
                f"the sandbox needs Linux; this is {sys.platform}. Run code verifiers in a Linux container or VM."
            )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        limits = self.limits
        options = {
            "layers": list(self._layers),
            "scratch_mib": limits.scratch_mib,
            "cpu_seconds": limits.cpu_seconds,
            "limits": {
                "AS": limits.memory_mib << 20,
                "NPROC": limits.processes + 2,  # the zygote, and a test process beside the program's
                "NOFILE": limits.open_files,
                "FSIZE": limits.scratch_mib << 20,
                "CORE": 0,
                "MEMLOCK": 0,
                "MSGQUEUE": 0,
            },
        }
        script = Path(__file__).with_name("sandbox_zygote.py")
        command = [sys.executable, "-P", "-s", "-S", "-B", str(script), str(theirs.fileno()), json.dumps(options)]
        with theirs:
            self._zygote = subprocess.Popen(
                command,
                env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        cgroup_report = self._limit_total_memory(self._zygote.pid)
        self._control = ours
        ours.settimeout(_START_SECONDS)
        try:
            hello = ours.recv(65536)
        except TimeoutError:
            hello = b""
        if not hello:
            self._zygote.kill()
            assert self._zygote.stderr is not None
            reason = self._zygote.stderr.read().decode(errors="replace").strip()[-500:]
            self.close()
            raise SandboxError(f"the sandbox's zygote did not start: {reason or f'no answer in {_START_SECONDS} s'}")
        ours.settimeout(_ANSWER_SECONDS)
        self._link = ZygoteLink(ours, self._zygote.pid)
        self.report = {**json.loads(hello)["report"], "memory cgroup": cgroup_report}
        if self.isolation == "kernel" and self.missing():
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing().items())
            self.close()
            raise SandboxError(
                f"this machine cannot isolate untrusted code: {reasons}. Allow these to the container "
                "(unprivileged user namespaces, Landlock, seccomp), or ask for isolation = 'rlimits' by name if you "
                "trust the programs."
            )

    def _limit_total_memory(self, zygote_pid: int) -> str:
        if "memory cgroup" not in self._layers:
            return "switched off"
        try:
            self._cgroup = MemoryCgroup(self.limits.total_memory_mib)
            self._cgroup.add(zygote_pid)
        except OSError as error:
            return str(error)
        return "on"

    def close(self) -> None:
        """End the zygote and everything it started. In a process forked from the owner: only let go of it."""
        if self._control is not None:
            self._control.close()
            self._control = self._link = None
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return
        if zygote.stderr is not None:
            zygote.stderr.close()
        if self._owner == os.getpid():
            try:
                zygote.wait(timeout=5)
            except subprocess.TimeoutExpired:
                zygote.kill()
                zygote.wait()
            if self._cgroup is not None:
                self._cgroup.remove()
        else:
            zygote.returncode = 0  # not our child: keep subprocess from warning and waiting
        self._cgroup = None

    def open(self, kind: str, job: Mapping[str, Any], *, stdin: bytes = b"") -> SandboxedProcess:
        """Start a child for one job of sandbox_child.py and send it the job.

        Args:
            kind: "calls", "inside", "program" or "checker".
            job: the other fields of the job's message.
            stdin: what the program reads on standard input.

        Raises:
            SandboxError: the zygote is gone and could not be replaced, or the child's walls failed.
        """
        if self._owner != os.getpid():
            # built before a fork, as the verifier pool does: the zygote is the other process's, so take one of our own
            self.close()
            self._owner = os.getpid()
        if self._link is None or self._zygote is None or self._zygote.poll() is not None:
            self.close()
            self._start()
        assert self._link is not None
        process = SandboxedProcess(
            self._link, stdin=stdin, scratch=self._scratch(), output_limit=self.limits.output_kib << 10
        )
        try:
            greeting = process.receive(_START_SECONDS)
            if greeting == "up":
                process.send({"kind": kind, **job})
                return process
        except ProcessEnded as error:
            greeting = str(error)
        except BaseException:
            self.close()  # the zygote does not answer
            raise
        process.end()
        raise SandboxError(f"the sandbox's child could not put up its walls ({greeting}): {process.stderr_tail()}")

    def _scratch(self) -> str:
        """A real directory where there is no mount namespace to hold a private one."""
        if self.report.get("mount namespace") == "on":
            return "/tmp"
        path = tempfile.mkdtemp(prefix="sandbox-")
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        return path

    def run_program(self, program: str, *, stdin: str = "", seconds: float = 10.0) -> ProgramRun:
        """Run a script as `python script.py < stdin` would.

        Args:
            program: Python source, run as `__main__`.
            stdin: its standard input.
            seconds: wall-clock limit, not counting time spent waiting for a CPU.
        """
        process = self.open("program", {"program": program}, stdin=stdin.encode(errors="surrogatepass"))
        failure = process.wait(seconds)
        ended = process.end()
        return ProgramRun(
            stdout=process.stdout.decode(errors="replace"),
            stderr_tail=process.stderr_tail(),
            reason=failure or ended.reason,
            exit_code=ended.exit_code,
            cpu_seconds=ended.cpu_seconds,
            wall_seconds=ended.wall_seconds,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRun:
    """How a script ended and what it wrote."""

    stdout: str
    stderr_tail: str
    reason: str
    """`exit 0`, `exit 1`, `timeout`, `memory`, `syntax`, `output` (too much of it), `signal 9`, ..."""
    exit_code: int
    """As `subprocess` counts: minus the signal's number when a signal ended it."""
    cpu_seconds: float
    wall_seconds: float


def new_token() -> str:
    """A secret that the answers of one run must carry: code that has not seen it cannot forge them."""
    return secrets.token_hex(8)
