"""What every benchmark says of itself: hardware, versions, commit, peaks of the machine, and the spread of repeats.

result = {**about(), "peaks": dataclasses.asdict(peaks("float32")), "seconds": spread(seconds)}
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from rlvr.errors import ConfigError
from rlvr.run_directory import versions

STREAM_BYTES = 2**28
"""Far more than the last cache of any CPU core, so that a copy goes through memory."""
GEMM_SIZE = 1536

DATA_SHEETS: dict[str, tuple[float, float, float]] = {
    "H200": (989e12, 67e12, 4.8e12),
    "H100 PCIe": (756e12, 51e12, 2.0e12),
    "H100": (989e12, 67e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 19.5e12, 2.039e12),
    "A100": (312e12, 19.5e12, 1.555e12),
    "L40S": (362e12, 91.6e12, 0.864e12),
}
"""GPU name contains -> dense bfloat16 FLOP/s, float32 FLOP/s, bytes/s; NVIDIA's data sheets, without sparsity."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The most that one rank's share of the machine can do."""

    flops_per_second: float
    bytes_per_second: float
    """Read plus written, by a copy."""
    source: str
    """`measured` by a matrix product and a copy with this process's threads, or `data sheet`."""


def about() -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": versions(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def peaks(dtype: str) -> Peaks:
    """FLOP/s and bytes/s of this process's device: measured on a CPU, from the data sheet on a GPU.

    Raises ConfigError for a GPU that is not in `DATA_SHEETS`.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for part, (bfloat16, float32, bandwidth) in DATA_SHEETS.items():
            if part in name:
                flops = bfloat16 if dtype == "bfloat16" else float32
                return Peaks(flops_per_second=flops, bytes_per_second=bandwidth, source=f"data sheet of {part}")
        raise ConfigError(f"the peaks of {name!r} are not known: add its data sheet to {__name__}.DATA_SHEETS.")
    return Peaks(flops_per_second=gemm_rate(dtype), bytes_per_second=copy_rate(), source="measured")


def gemm_rate(dtype: str, *, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product of this process (best of `repeats`)."""
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(getattr(torch, dtype)) for _ in range(2))
    torch.matmul(left, right)
    return 2 * GEMM_SIZE**3 / min(seconds_of(lambda: torch.matmul(left, right)) for _ in range(repeats))


def copy_rate(*, repeats: int = 5) -> float:
    """Bytes/s, read plus written, of a copy in this process's memory (best of `repeats`)."""
    source = torch.ones(STREAM_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * STREAM_BYTES / min(seconds_of(lambda: target.copy_(source)) for _ in range(repeats))


def seconds_of(call: Any) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and count of repeats.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0, 'repeats': 3}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def write_result(path: str | pathlib.Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, floats cut to 6 significant digits."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Floats of a nested result cut to 6 significant digits.

    >>> rounded({"a": [1 / 3, 2], "b": 123456789.0})
    {'a': [0.333333, 2], 'b': 123457000.0}
    """
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
