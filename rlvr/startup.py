"""Checks that cost nothing, made before anything is loaded. No torch here."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from rlvr.config import Config, Source
from rlvr.data import Row, read_rows, verifier_names
from rlvr.errors import ConfigError, DataError
from verifiers import registry
from verifiers.base import Verifier
from verifiers.errors import GroundTruthError
from verifiers.registry import VerifierSpec

MOST_SHOWN = 10


def check(config: Config) -> list[str]:
    """Everything that can be known without loading a model: files, verifier names and options, rows.

    Returns a description of the run, line by line. Raises ConfigError, DataError or VerifierError.
    """
    problems = [p for p in (_missing_model(config), *map(_missing_source, config.data.train + config.data.eval)) if p]
    if problems:
        raise ConfigError("\n  ".join(["the recipe names files that do not exist:", *problems]))
    local = [source for source in config.data.train + config.data.eval if _is_file(source.path)]
    rows = [read_rows(source) for source in local]
    used = sorted({*verifier_names(rows), *config.verification.remap.values()})
    build_verifiers(config, used)
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    updates = config.algorithm.epochs * config.algorithm.minibatches
    lines = [f"{source.path}: {len(found)} rows" for source, found in zip(local, rows, strict=True)]
    return [
        *lines,
        f"verifiers: {', '.join(used)}",
        f"a step: {config.rollout.prompts_per_step} prompts x {config.rollout.samples_per_prompt} samples = {samples} "
        f"samples, {updates} optimizer steps ({config.algorithm.epochs} epochs x {config.algorithm.minibatches} "
        "minibatches)",
        f"the run: {config.training.steps} steps, {config.training.steps * samples} samples -> {config.run_dir}",
    ]


def build_verifiers(config: Config, names: Sequence[str]) -> dict[str, Verifier]:
    """Build each verifier once. Raises VerifierError for an unknown name or a wrong option."""
    options = {name.lower(): value for name, value in config.verification.options.items()}
    unused = sorted(set(options) - {name.lower() for name in names})
    if unused:
        raise ConfigError(
            f"verification.options has options for {', '.join(unused)}, which no row uses "
            f"(rows use {', '.join(names)}). Remove them, or correct the name."
        )
    plugins = tuple(config.plugins)
    return {
        name: registry.build(VerifierSpec(name=name, options=options.get(name.lower(), {}), plugins=plugins))
        for name in names
    }


def check_ground_truths(config: Config, row_sets: Sequence[Sequence[Row]]) -> None:
    """Have every verifier read every ground truth of its rows.

    Raises DataError listing the rows that cannot be read: their verdicts could only be indeterminate.
    """
    names = verifier_names(row_sets)
    remapped = sorted({name.lower() for name in config.verification.remap.values()} - set(names))
    verifiers = build_verifiers(config, [*names, *remapped])
    problems = []
    for rows in row_sets:
        for row in rows:
            for task in row.tasks:
                try:
                    verifiers[task.verifier].check_ground_truth(task.ground_truth)
                except GroundTruthError as error:
                    problems.append(f"{row.place}: {error}")
    if problems:
        more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        shown = "\n  ".join(problems[:MOST_SHOWN])
        raise DataError(f"{len(problems)} ground truths cannot be read; correct or remove the rows:\n  {shown}{more}")


def _is_file(path: str) -> bool:
    return pathlib.Path(path).is_file()


def _missing_source(source: Source) -> str | None:
    path = pathlib.Path(source.path)
    if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_file():
        return f"{source.path}: no such file of rows"
    return None


def _missing_model(config: Config) -> str | None:
    """A path that cannot be a Hub id (`name` or `owner/name`) must be a folder with a config.json."""
    path = pathlib.Path(config.model.path)
    if path.exists():
        return None if (path / "config.json").is_file() else f"model.path={config.model.path!r}: no config.json in it"
    if path.is_absolute() or len(path.parts) > 2 or config.model.path.startswith("."):
        return f"model.path={config.model.path!r}: no such folder"
    return None
