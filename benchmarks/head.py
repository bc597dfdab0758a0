"""Peak memory and time of reading log-probabilities: the head in chunks against full logits.

    python -m benchmarks.head --output benchmarks/results/head.json                        # 8,192 tokens, V = 151,936
    python -m benchmarks.head --dtype bfloat16 --output benchmarks/results/head_gpu.json   # on a GPU
    python -m benchmarks.head --tokens 1024 --repeat 3                                     # small: seconds

Forward and backward from hidden states [T, 896] to the gradient of hidden states and output weight (Qwen2.5-0.5B's
output layer). Each variant runs in a process of its own, in turns; memory is the highest above what was held before
the forward: resident set on a CPU, torch's allocations on a GPU. The weight's gradient [V, 896] is in every figure but
`value`'s.

`chunked` is `rlvr.head` as PPO, SFT and DPO call it in an update, `chunked, entropy` as the forward before it does.
`full` is `cross_entropy` on float32 logits [T, V], the leanest common form; `full, log_softmax` gathers from
log-probabilities. `value` is the critic's head, `score(hidden)`: [T, 1], with nothing to save.

`liger` is Liger's fused linear cross entropy (arXiv 2410.10989), one gradient for each token (`reduction="none"`), with
the weight's gradient summed in float32. It takes part on a GPU where it is installed (pip install liger-kernel); it is
no dependency. Every variant's gradient is held against that of `full` on the tokens that warm it up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.machine import about, seconds_of, spread, write_result
from benchmarks.memory import memory_mib, reset_peak
from rlvr.head import TokenHead

Read = Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor]


def full(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    return -functional.cross_entropy(output(hidden).float(), targets, reduction="none")


def log_softmax(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    return output(hidden).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def chunked(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    logprobs: torch.Tensor = TokenHead(output)(hidden, targets, 1.0, None, entropy=False)[0]
    return logprobs


def with_entropy(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    logprobs: torch.Tensor = TokenHead(output)(hidden, targets, 1.0, None)[0]
    return logprobs


def value(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    return output(hidden).squeeze(-1).float()


def liger(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as error:
        raise SystemExit(f"--variants liger needs Liger ({error}): pip install liger-kernel") from error
    losses: torch.Tensor = liger_fused_linear_cross_entropy(
        hidden, output.weight, targets, reduction="none", accum_dtype=torch.float32
    )
    return -losses


def by_default() -> list[str]:
    """The variants that can run here."""
    has_liger = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
    return [name for name in VARIANTS if name != "liger" or has_liger]


VARIANTS: dict[str, Read] = {
    "full": full,
    "chunked": chunked,
    "full, log_softmax": log_softmax,
    "chunked, entropy": with_entropy,
    "value": value,
    "liger": liger,
}
WARM_UP_TOKENS = 64


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One forward and backward in this process, after a small one that warms it up."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    width = 1 if arguments.only == "value" else arguments.vocabulary
    output = torch.nn.Linear(arguments.hidden, width, bias=False, dtype=dtype, device=device)
    output.weight.data.mul_(0.5)
    hidden = torch.randn(arguments.tokens, arguments.hidden, dtype=dtype, device=device, requires_grad=True)
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,), device=device)
    read = VARIANTS[arguments.only]

    def once(tokens: int) -> None:
        coefficients = torch.linspace(-1, 1, tokens, device=device)
        (coefficients * read(hidden[:tokens], output, targets[:tokens])).sum().backward()

    once(WARM_UP_TOKENS)
    if arguments.only != "value":
        refuse_another_gradient(hidden, output, targets, arguments.only)
    output.weight.grad = hidden.grad = None
    held = memory_mib()
    reset_peak()
    seconds = seconds_of(lambda: once(arguments.tokens))
    return {"seconds": seconds, "peak_above_hidden_mib": memory_mib(peak=True) - held}


def refuse_another_gradient(hidden: torch.Tensor, output: torch.nn.Linear, targets: torch.Tensor, name: str) -> None:
    """Hold the gradients that a variant has left against those of `full` on the same tokens."""
    found = {"hidden states": hidden.grad, "weight": output.weight.grad}
    output.weight.grad = hidden.grad = None
    coefficients = torch.linspace(-1, 1, WARM_UP_TOKENS, device=hidden.device)
    (coefficients * full(hidden[:WARM_UP_TOKENS], output, targets[:WARM_UP_TOKENS])).sum().backward()
    for what, expected in (("hidden states", hidden.grad), ("weight", output.weight.grad)):
        ours = found[what]
        assert ours is not None
        assert expected is not None
        off = ((ours - expected).norm() / expected.norm()).item()
        if not off < 0.02:  # bfloat16 keeps 8 bits
            raise SystemExit(f"{name}: the gradient of the {what} is off by {off:.1%}; it computes something else")


def contest(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    for _ in range(arguments.repeat):
        for name in arguments.variants:
            command = [sys.executable, "-m", "benchmarks.head", *sys.argv[1:], "--only", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {}
    for name, runs in found.items():
        rows[name] = {key: spread([run[key] for run in runs]) for key in ("seconds", "peak_above_hidden_mib")}
        if name != "full" and "full" in found:
            for key in ("seconds", "peak_above_hidden_mib"):
                pairs = zip(runs, found["full"], strict=True)
                rows[name][f"{key}_over_full"] = spread([ours[key] / theirs[key] for ours, theirs in pairs])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=by_default(), help="default: all that can run"
    )
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments)))
        return
    rows = contest(arguments)
    for name, row in rows.items():
        ratios = "".join(f"  {key}: {row[key]['median']:.3f}" for key in row if key.endswith("_over_full"))
        seconds, memory = row["seconds"]["median"], row["peak_above_hidden_mib"]["median"]
        print(f"{name:20} {seconds:8.2f} s  {memory:8.0f} MiB{ratios}")
    if arguments.output:
        names = ("tokens", "vocabulary", "hidden", "dtype")
        about_it = {"what": "forward and backward of the output layer; see benchmarks/head.py"}
        settings = {name: getattr(arguments, name) for name in names}
        write_result(arguments.output, about() | about_it | settings | {"variants": rows})


if __name__ == "__main__":
    main()
