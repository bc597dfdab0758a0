"""Which system calls an untrusted program may make: an allow-list, as a seccomp filter built here.

Everything not named is refused with EPERM, so a call that a later kernel adds is refused too. Left out on purpose:
execve (no program needs another one to compute a value), socket and connect, ptrace and process_vm_*, mount, unshare
and setns, System V and POSIX IPC, memfd_create (memory that no limit counts), io_uring, bpf, keyctl, userfaultfd,
perf_event_open.

Written with ctypes instead of libseccomp's bindings because those need a system library that containers often lack, and
the filter is a list of numbers. Numbers: Linux's asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64).
Standard library only: the zygote imports this file without the rest of the package.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -
sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, dup 32 23, dup2 33 -
pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210, getsockname 51 204
getpeername 52 205, setsockopt 54 208, getsockopt 55 209, fork 57 -, vfork 58 -, exit 60 93, wait4 61 260
kill 62 129, uname 63 160, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45
ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -
creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, umask 95 166
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174
getgid 104 176, geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173, getpgrp 111 -
setsid 112 157, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, utime 132 -
statfs 137 43, fstatfs 138 44, getpriority 140 141, gettid 186 178, futex 202 98, sched_getaffinity 204 123
epoll_create 213 -, getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -
epoll_ctl 233 21, tgkill 234 131, tkill 200 130, utimes 235 -, waitid 247 95, openat 257 56, mkdirat 258 34
unlinkat 263 35, newfstatat 262 79, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78
fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99
get_robust_list 274 100, splice 275 76, tee 276 77, utimensat 280 88, epoll_pwait 281 22, timerfd_create 283 85
eventfd 284 -, fallocate 285 47, timerfd_settime 286 86, timerfd_gettime 287 87, eventfd2 290 19
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, prlimit64 302 261
renameat2 316 276, getrandom 318 278, membarrier 324 283, copy_file_range 326 285, preadv2 327 286
pwritev2 328 287, statx 332 291, rseq 334 293, close_range 436 436, openat2 437 437, faccessat2 439 439
epoll_pwait2 441 441, futex_waitv 449 449, getcpu 309 168, signalfd4 289 74, setrlimit 160 164, arch_prctl 158 -
capget 125 90, time 201 -, sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125
sched_get_priority_min 147 126
"""
"""Name, number on x86-64, number on arm64 (`-`: that machine has no such call)."""

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 1, "aarch64": 2}

# Calls allowed for some arguments only: (argument index, values allowed). prctl: names only.
_IOCTL = (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTL = (0, (3, 15, 16, 23, 0x53564D41))  # GET_DUMPABLE SET_NAME GET_NAME CAPBSET_READ SET_VMA
_SOCKETPAIR = (0, (1,))  # AF_UNIX: asyncio wakes itself through a pair
_ARGUMENT_RULES = {
    "x86_64": {16: _IOCTL, 53: _SOCKETPAIR},
    "aarch64": {29: _IOCTL, 199: _SOCKETPAIR},
}
_PRCTL_NUMBER = {"x86_64": 157, "aarch64": 167}
_KILL = {"x86_64": (62, 200), "aarch64": (129, 130)}
_SETUP_ONLY = {"x86_64": (165, 126, 434, 444, 445, 446), "aarch64": (40, 91, 434, 444, 445, 446)}
"""mount, capset, pidfd_open, landlock_*: the zygote's work, closed to programs."""
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_NAMESPACE_FLAGS = 0x7E020000  # every CLONE_NEW* that clone takes

_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _number_ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive numbers joined.

    >>> _number_ranges([3, 1, 2, 7])
    [(1, 3), (7, 7)]
    """
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _argument_rule(number: int, index: int, allowed: tuple[int, ...]) -> list[bytes]:
    block = [_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * index)]
    for value in allowed:
        block += [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    block.append(_instruction(_RETURN, _ERROR | errno.EPERM))
    return [_instruction(_EQUAL, number, 0, len(block)), *block]


def _header(machine: str) -> list[bytes]:
    return [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, _AUDIT_ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_OFFSET),
        _instruction(_AT_LEAST, _X32_BIT, 0, 1),
        _instruction(_RETURN, _KILL_PROCESS),
    ]


def zygote_filter(machine: str = platform.machine()) -> bytes:
    """The allow-list, plus what the zygote and a child's set-up need, as an array of `struct sock_filter`.

    Raises:
        NotImplementedError: no table for this machine.
    """
    if machine not in _COLUMN:
        raise NotImplementedError(f"no system call table for {machine!r}; known: {', '.join(_COLUMN)}")
    entries = [entry.split() for line in _NUMBERS.strip().splitlines() for entry in line.split(", ")]
    column = _COLUMN[machine]
    numbers = [int(entry[column]) for entry in entries if entry[column] != "-"]
    numbers += [_CLONE[machine], _PRCTL_NUMBER[machine], *_SETUP_ONLY[machine]]

    program = _header(machine)
    for first, last in _number_ranges(numbers):
        program += [
            _instruction(_AT_LEAST, first, 0, 2),
            _instruction(_GREATER, last, 1, 0),
            _instruction(_RETURN, _ALLOW),
        ]
    for number, (index, allowed) in _ARGUMENT_RULES[machine].items():
        program += _argument_rule(number, index, allowed)
    program += [
        # clone3 hides its flags behind a pointer; with ENOSYS the C library falls back to clone
        _instruction(_EQUAL, _CLONE3, 0, 1),
        _instruction(_RETURN, _ERROR | errno.ENOSYS),
        _instruction(_RETURN, _ERROR | errno.EPERM),
    ]
    return b"".join(program)


def child_filter(machine: str = platform.machine(), *, allow_kill: bool) -> bytes:
    """What a child gives up beyond the zygote's allow-list, just before the program is loaded.

    Args:
        machine: `platform.machine()`.
        allow_kill: keep kill and tkill, which are harmless only inside a pid namespace.

    Raises:
        NotImplementedError: no table for this machine.
    """
    if machine not in _COLUMN:
        raise NotImplementedError(f"no system call table for {machine!r}; known: {', '.join(_COLUMN)}")
    program = _header(machine)
    for number in (*_SETUP_ONLY[machine], *(() if allow_kill else _KILL[machine])):
        program += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _ERROR | errno.EPERM)]
    program += _argument_rule(_PRCTL_NUMBER[machine], *_PRCTL)
    program += [
        _instruction(_EQUAL, _CLONE[machine], 0, 3),
        _instruction(_LOAD, _ARGUMENTS_OFFSET),
        _instruction(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1),
        _instruction(_RETURN, _ERROR | errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class SeccompFilter:
    """A filter built once and installed in every child."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def install(self) -> None:
        """Put the calling process under the filter, for good. It must have `no_new_privs`. Raises OSError."""
        set_seccomp, filter_mode = 22, 2
        if self._prctl(set_seccomp, filter_mode, ctypes.byref(self._program), 0, 0):
            code = ctypes.get_errno()
            raise OSError(code, f"seccomp: {os.strerror(code)}")
