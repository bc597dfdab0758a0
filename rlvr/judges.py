"""From a recipe to the verifiers of a run: the one place where options are put together. No torch here.

A verifier may judge by other options where it rewards than where it measures: `ifeval` guards against content-free
text in training, and gives the public evaluator's verdicts in evaluation. Both stand in one pool, under two names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rlvr.config import Config
from rlvr.data import verifier_key
from verifiers import registry
from verifiers.base import Use
from verifiers.registry import VerifierSpec


def spec(config: Config, name: str, use: Use) -> VerifierSpec:
    """What it takes to build verifier `name` for a use.

    Its options are those of `verification.options`, completed for training (or stripped for evaluation) by the
    verifier's own `options_for`; in evaluation those of `evaluation.options` replace them one by one.

    Raises what importing the verifier raises.
    """
    plugins = tuple(config.plugins)
    common = _by_key(config.verification.options).get(name, {})
    options = registry.resolve(name, plugins).options_for(use, common)
    if use == "evaluation":
        options = {**options, **_by_key(config.evaluation.options).get(name, {})}
    return VerifierSpec(name=name, options=options, plugins=plugins)


def pool_specs(config: Config, names: Iterable[str]) -> dict[str, VerifierSpec]:
    """The specs of a run's pool: those of training by name, and beside them those that evaluation has otherwise."""
    specs = {}
    for name in sorted({*names, *map(verifier_key, config.verification.remap.values())}):
        specs[name] = spec(config, name, "training")
        if config.data.eval and config.evaluation.enabled:
            specs[name_in_pool(config, name, "evaluation")] = spec(config, name, "evaluation")
    return specs


def name_in_pool(config: Config, name: str, use: Use) -> str:
    """The name by which the pool knows a verifier in a use.

    It is `name` itself, but in an evaluation with options of its own.
    """
    is_other = use == "evaluation" and spec(config, name, "evaluation") != spec(config, name, "training")
    return f"{name} in evaluation" if is_other else name


def evaluation_names(config: Config, names: Iterable[str]) -> dict[str, str]:
    """For a `Scorer` of held-out rows: which name in the pool judges rows of which verifier."""
    return {name: name_in_pool(config, name, "evaluation") for name in names}


def describe_training(config: Config, name: str) -> str | None:
    """How training judges otherwise than evaluation, in words; None when it does not.

    >>> import tomllib
    >>> text = 'run_dir="r"\\nmodel.path="m"\\ndata.train="a"\\nrollout.prompts_per_step=1\\ntraining.steps=1'
    >>> describe_training(Config.model_validate(tomllib.loads(text)), "ifeval")
    'ifeval: training with guard = true, evaluation without'
    """
    training, evaluation = (dict(spec(config, name, use).options) for use in ("training", "evaluation"))
    changed = sorted(key for key in {*training, *evaluation} if training.get(key) != evaluation.get(key))
    if not changed:
        return None
    return f"{name}: training {_words(training, changed)}, evaluation {_words(evaluation, changed)}"


def _words(options: dict[str, Any], keys: list[str]) -> str:
    given = [f"{key} = {json.dumps(options[key])}" for key in keys if key in options]
    return f"with {', '.join(given)}" if given else "without"


def _by_key(options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {verifier_key(name): value for name, value in options.items()}
