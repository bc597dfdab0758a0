"""Memory of this process: resident on a CPU, allocated by torch on a GPU; now, and at its highest."""

from __future__ import annotations

import pathlib

import torch

STATUS = pathlib.Path("/proc/self/status")
CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")


def memory_mib(*, peak: bool = False) -> float:
    """MiB in use now, or the most since `reset_peak`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    field = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Begin a new high-water mark at what is in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        CLEAR_REFS.write_text("5")  # proc(5): 5 resets the peak of the resident set


def free_mib() -> float:
    """MiB of this rank's GPU that nobody has, as the driver counts; 0 on a CPU."""
    return torch.cuda.mem_get_info()[0] / 2**20 if torch.cuda.is_available() else 0.0
