"""A memory cgroup around one zygote and all its children, where this process may make one.

It closes the one gap of the other limits: they bound the memory of each process, not of all processes of a program
together. Unprivileged users may make cgroups only where the system hands them a subtree, so isolation "kernel" does not
ask for this layer.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NAME = "python-sandbox"
_count = 0


class MemoryCgroup:
    """A cgroup that holds one process and its descendants to `limit_mib` of memory in total."""

    def __init__(self, limit_mib: int) -> None:
        """Raises OSError where none can be made here."""
        global _count
        parent, limit_file = _writable_parent()
        _remove_stale(parent)
        _count += 1
        self._path = parent / f"{_NAME}-{os.getpid()}-{_count}"
        self._path.mkdir()
        try:
            (self._path / limit_file).write_text(str(limit_mib << 20))
        except OSError:
            self._path.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Put a process, and what it will fork, under the limit. Raises OSError."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the cgroup; its processes must have ended."""
        # a process that is still being torn down: the next sandbox of this machine removes it
        with contextlib.suppress(OSError):
            self._path.rmdir()


def _writable_parent() -> tuple[Path, str]:
    """This process's own cgroup, and the name of the file that limits memory below it. Raises OSError."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, place = line.split(":", 2)
        if controllers == "memory":  # version 1
            return Path("/sys/fs/cgroup/memory") / place.lstrip("/"), "memory.limit_in_bytes"
        if number == "0" and (Path("/sys/fs/cgroup") / place.lstrip("/") / "memory.max").exists():
            return Path("/sys/fs/cgroup") / place.lstrip("/"), "memory.max"
    raise OSError("no memory controller in this process's cgroup")


def _remove_stale(parent: Path) -> None:
    """Remove what owners that were killed have left."""
    for path in parent.glob(f"{_NAME}-*"):
        owner = path.name.split("-")[2]
        if not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                path.rmdir()
