"""The kernel's walls, one function each: namespaces, the private file tree, Landlock, capabilities, limits.

Raw system calls through ctypes, because the whole of it must run between a fork and the untrusted program in about a
millisecond: a bubblewrap per sample costs 11 ms, and the Python bindings of Landlock and libseccomp add a dependency
for a dozen calls. Standard library only: the zygote imports this file without the rest of the package.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_libc = ctypes.CDLL(None, use_errno=True)

NEW_MOUNT, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_READ_ONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_RECURSIVE, _MS_PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
INSIDE_ID = 1000  # user and group seen by the program
UNPRIVILEGED_ID = 65534  # what root becomes before anything else
SCRATCH = "/tmp"

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 24, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NR_CLONE = {"x86_64": 56, "aarch64": 220}
_NR_CAPSET = {"x86_64": 126, "aarch64": 91}
_NR_LANDLOCK_CREATE, _NR_LANDLOCK_ADD, _NR_LANDLOCK_RESTRICT = 444, 445, 446
_MACHINE = os.uname().machine


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, first: int = 0, second: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), zero, zero), f"prctl({option}, {first})")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(
        _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]),
        f"mount {kind or ''} {target}",
    )


# --- once per zygote


def unshare(flags: int) -> None:
    """Enter new namespaces. Raises OSError."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def become_unprivileged() -> None:
    """Give up root's user id, so that files of root and root's exemption from the process limit are out of reach."""
    os.setgroups([])
    os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    _prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self still belongs to root and the id maps cannot be written


def enter_user_namespace(proc: int) -> None:
    """Become the owner of a new user namespace in which this user is INSIDE_ID.

    Args:
        proc: descriptor of /proc, which the private tree may already hide.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(NEW_USER)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE_ID} {user} 1"),
        ("gid_map", f"{INSIDE_ID} {group} 1"),
    ):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _locked_flags(path: str) -> int:
    # a user namespace may not take these flags off a mount, so a remount must repeat them
    present = os.statvfs(path).f_flag
    flags = present & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for shown, kept in ((1024, 1024), (2048, 2048), (4096, 1 << 21)):
        flags |= kept if present & shown else 0
    return flags


def _bind(source: str, target: str, *, read_only: bool) -> None:
    _mount(source, target, None, _MS_BIND)
    flags = _MS_REMOUNT | _MS_BIND | _locked_flags(target) | _MS_NOSUID | (_MS_READ_ONLY if read_only else 0)
    _mount("none", target, None, flags | (_MS_NODEV if read_only else 0))


def enter_private_tree(readable: list[str], hidden: list[str]) -> None:
    """Replace the file tree by an empty one that shows `readable` (read-only), /dev/null and an empty scratch
    directory.

    Args:
        readable: absolute directories that keep their place.
        hidden: directories inside them that appear empty.
    """
    _mount("none", "/", None, _MS_RECURSIVE | _MS_PRIVATE)
    base = SCRATCH if os.path.isdir(SCRATCH) else "/dev"
    sources = {path: os.open(path, os.O_PATH) for path in [*readable, "/dev/null"]}
    _mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,nr_inodes=256,mode=755")
    old_base = os.open("/", os.O_PATH)
    try:
        for path, descriptor in sources.items():
            target = base + path
            if path == "/dev/null":
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
            else:
                os.makedirs(target, exist_ok=True)
            # through the descriptor: `base` may now cover the source's own path
            _bind(f"/proc/self/fd/{descriptor}", target, read_only=path != "/dev/null")
        for path in hidden:
            _mount(
                "tmpfs", base + path, "tmpfs", _MS_READ_ONLY | _MS_NOSUID | _MS_NODEV, "size=4k,nr_inodes=2,mode=555"
            )
        os.makedirs(base + SCRATCH, exist_ok=True)
    finally:
        for descriptor in (*sources.values(), old_base):
            os.close(descriptor)
    os.chdir(base)
    _check(_libc.syscall(_NR_PIVOT_ROOT[_MACHINE], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_READ_ONLY | _MS_NOSUID | _MS_NODEV)


def forbid_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """Empty the set from which an exec could regain capabilities, and lock 'root has none'. Needs CAP_SETPCAP."""
    _prctl(_PR_CAP_AMBIENT, 4)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last capability of this kernel
    _prctl(_PR_SET_SECUREBITS, 0b101111)  # noroot, no setuid fixup, keep-caps off: all locked


def adopt_orphans() -> None:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


# --- once per program

_holding_lock = ctypes.PyDLL(None, use_errno=True)
_clone = _holding_lock.syscall
_clone.restype = ctypes.c_long
_CLONE_ARGUMENTS = [ctypes.c_long(0)] * 4


def fork(flags: int) -> int:
    """fork(2) into the new namespaces `flags`; returns 0 in the child. Single-threaded processes only.

    The steps of `os.fork`, with clone(2) in the middle: unshare(CLONE_NEWPID) works once in a process's life.
    """
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = _clone(ctypes.c_long(_NR_CLONE[_MACHINE]), ctypes.c_long(flags | 17), *_CLONE_ARGUMENTS)  # 17: SIGCHLD
    if pid == 0:
        api.PyOS_AfterFork_Child()
    else:
        api.PyOS_AfterFork_Parent()
    return int(_check(pid, "clone"))


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, 9)


def volunteer_for_oom(proc: int) -> None:
    """When memory runs out, this process goes before its zygote and before the machine's other work.

    Args:
        proc: descriptor of /proc.
    """
    descriptor = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
    try:
        os.write(descriptor, b"1000")
    finally:
        os.close(descriptor)


def mount_scratch(size_mib: int) -> None:
    """A fresh, size-limited scratch directory for this mount namespace: it is gone with the namespace."""
    options = f"size={size_mib}m,nr_inodes=4096,mode=700,uid={INSIDE_ID},gid={INSIDE_ID}"
    _mount("tmpfs", SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.syscall(_NR_CAPSET[_MACHINE], header, bytes(24)), "capset")


def set_limits(limits: dict[str, int]) -> None:
    """Set soft and hard limits, e.g. `{"AS": 1 << 29}`; a limit already lower stays."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def landlock_version() -> int:
    """The kernel's Landlock ABI version. Raises OSError where there is none."""
    return _check(_libc.syscall(_NR_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "landlock")


_READ_FILE, _WRITE_FILE, _READ_DIRECTORY = 1 << 2, 1 << 1, 1 << 3
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}  # number of file rights; 16 from version 5
_TRUNCATE = 1 << 14
# what the scratch directory allows: all but execute, character and block devices, device ioctl
_NOT_IN_SCRATCH = (1 << 0) | (1 << 6) | (1 << 11) | (1 << 15)


def restrict_files(version: int, readable: list[str], writable: list[str]) -> None:
    """Landlock: read `readable`, use `writable` freely, no other file; no TCP, no signal or abstract socket to the
    outside.

    Args:
        version: from `landlock_version`; older kernels enforce less (3: no truncate, 4: TCP, 6: signals and abstract
            sockets).
    """
    rights = (1 << _RIGHTS_BY_VERSION.get(version, 16)) - 1
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _check(
        _libc.syscall(_NR_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset"
    )
    rules = [(path, _READ_FILE | _READ_DIRECTORY) for path in readable]
    rules += [(path, rights & ~_NOT_IN_SCRATCH) for path in writable]
    rules.append(("/dev/null", (_READ_FILE | _WRITE_FILE | _TRUNCATE) & rights))
    for path, allowed in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            continue  # an interpreter in root's home, without a tree of our own: unreadable for this user anyway
        if not os.path.isdir(path):
            allowed &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", allowed, descriptor)
        _check(_libc.syscall(_NR_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock rule for {path}")
        os.close(descriptor)
    _check(_libc.syscall(_NR_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
