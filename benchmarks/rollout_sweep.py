"""The sweep of `benchmarks.rollout`: settings of some options, each measured in processes of its own.

`--search all` measures every combination; `each` begins with the first values, and changes one option after another,
keeping the fastest so far. A setting that does not run, e.g. one that vLLM refuses, is a row with its reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from rlvr.errors import ConfigError

SWEPT = ("rollout.samples_per_prompt",)
"""Options outside of `sampler.` that a sweep may vary."""
REASON_CHARACTERS = 300


Measured = dict[str, Any]
"""`options`, and `tokens_per_second` with what vLLM says of it, or `failed`: the reason."""


def choices_of(swept: list[str]) -> list[list[str]]:
    """Overrides of each option.

    Raises ConfigError for an option that does not change the rollout's speed alone.

    >>> choices_of(["sampler.max_num_seqs=64,256", "sampler.sleep=true"])
    [['sampler.max_num_seqs=64', 'sampler.max_num_seqs=256'], ['sampler.sleep=true']]
    """
    choices = []
    for text in swept:
        name, _, values = text.partition("=")
        if not values or not (name.startswith("sampler.") or name in SWEPT):
            raise ConfigError(
                f"--sweep {text!r}: an option of the sampler or {', '.join(SWEPT)} with values is needed, "
                "e.g. sampler.max_num_seqs=64,256."
            )
        choices.append([f"{name}={value}" for value in values.split(",")])
    return choices


def search_all(choices: list[list[str]], measure: Callable[[list[str]], Measured]) -> list[Measured]:
    """Measure every combination."""
    return [measure(list(chosen)) for chosen in itertools.product(*choices)]


def search_each(choices: list[list[str]], measure: Callable[[list[str]], Measured]) -> list[Measured]:
    """Measure the first values, then change one option after another, keeping the fastest so far."""
    best = [values[0] for values in choices]
    measured = [measure(best)]
    fastest = measured[0].get("tokens_per_second", 0.0)
    for at, values in enumerate(choices):
        for value in values[1:]:
            chosen = [*best[:at], value, *best[at + 1 :]]
            measured.append(measure(chosen))
            rate = measured[-1].get("tokens_per_second", 0.0)
            if rate > fastest:
                best, fastest = chosen, rate
    return measured


SEARCHES = {"all": search_all, "each": search_each}


def same_samples(overrides: list[str], samples: int) -> list[str]:
    """With another group size, as many prompts as keep the step's samples.

    >>> same_samples(["rollout.samples_per_prompt=8"], 64)
    ['rollout.samples_per_prompt=8', 'rollout.prompts_per_step=8']
    """
    for text in overrides:
        name, _, value = text.partition("=")
        if name == "rollout.samples_per_prompt":
            return [*overrides, f"rollout.prompts_per_step={max(samples // int(value), 1)}"]
    return overrides


def sweep(arguments: argparse.Namespace) -> None:
    """Measure settings, print the table and the best one as recipe lines, and write all results."""
    from benchmarks.machine import about, write_result
    from rlvr import recipe

    config = recipe.load(arguments.recipe, arguments.overrides)
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt

    def measure(chosen: list[str]) -> Measured:
        found = _measure(arguments, same_samples(chosen, samples))
        rate = found.get("tokens_per_second")
        shown = f"{rate:>10,.0f} tokens/s" if rate else f"{'did not run':>19}"
        print(f"{shown}  {' '.join(chosen)}" + ("" if rate else f": {found['failed']}"), flush=True)
        return {"options": chosen, **found}

    measured = SEARCHES[arguments.search](choices_of(arguments.sweep), measure)
    ran = [one for one in measured if "tokens_per_second" in one]
    if not ran:
        raise ConfigError("no setting of the sweep ran; the reasons are printed above.")
    best = max(ran, key=lambda one: one["tokens_per_second"])
    lines = recipe_lines(same_samples(best["options"], samples))
    print(f"\nfastest for {arguments.shape or config.model.path}, {arguments.lengths} lengths:\n{lines}", end="")
    if arguments.output:
        result = {**about(), "recipe": arguments.recipe, "overrides": arguments.overrides, "ranks": arguments.ranks}
        result |= {"lengths": arguments.lengths, "shape": arguments.shape, "search": arguments.search}
        write_result(arguments.output, result | {"measured": measured, "best": lines})
        arguments.output.with_suffix(".toml").write_text(lines, encoding="utf-8")


def _measure(arguments: argparse.Namespace, chosen: list[str]) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "one.json"
        command = [sys.executable]
        if arguments.ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.ranks)]
        command += ["-m", "benchmarks.rollout", arguments.recipe, *arguments.overrides, *chosen]
        command += ["--lengths", arguments.lengths, "--repeats", str(arguments.repeats), "--output", str(output)]
        command += ["--against", *(["--shape", arguments.shape] if arguments.shape else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": reason(done.stderr)}
        found = json.loads(output.read_text())
        rate = found["tokens_per_second"]["ours"]
        kept = {name: found[name] for name in ("sampler", "first_token_seconds", "mfu", "mbu", "seconds")}
        return {"tokens_per_second": rate["median"], "tokens_per_second_spread": rate, **kept}


def reason(stderr: str) -> str:
    r"""What ended a process, from what it wrote: its last error, without the traceback and torchrun's own words.

    >>> reason("Traceback ...\n[rank0]: ValueError: fp8 is not\nsupported\nE1 failed\ntorch.ChildFailedError: x FAILED")
    'ValueError: fp8 is not supported E1 failed'
    """
    own = re.split(r"^.*ChildFailedError.*$", stderr, flags=re.MULTILINE)[0]
    errors = list(re.finditer(r"^(?:\[rank\d+\]:\s*)?([\w.]*(?:Error|Exception|Interrupt): .*)", own, re.MULTILINE))
    text = own[errors[-1].start(1) :] if errors else own.strip()[-REASON_CHARACTERS:]
    return " ".join(text.split())[:REASON_CHARACTERS] or "no output"


def recipe_lines(overrides: list[str]) -> str:
    """Overrides as TOML tables.

    >>> print(recipe_lines(["sampler.max_num_seqs=64", "rollout.samples_per_prompt=8", "sampler.sleep=true"]), end="")
    [sampler]
    max_num_seqs = 64
    sleep = true
    <BLANKLINE>
    [rollout]
    samples_per_prompt = 8
    """
    tables: dict[str, list[str]] = {}
    for text in overrides:
        dotted, _, value = text.partition("=")
        section, _, option = dotted.rpartition(".")
        quoted = value if value in ("true", "false") or value.replace(".", "", 1).isdecimal() else f'"{value}"'
        tables.setdefault(section, []).append(f"{option} = {quoted}")
    return "\n".join(f"[{section}]\n" + "".join(f"{line}\n" for line in lines) for section, lines in tables.items())
