"""Options of the objective that exclude each other, or that would do nothing in a run: one text each, with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

if TYPE_CHECKING:
    from rlvr.config import Algorithm, Config

WHITENED: dict[str, bool | None] = {
    "gae": None,
    "reinforce_plus_plus": None,
    "grpo": False,
    "dr_grpo": False,
    "rloo": False,
    "reinforce_plus_plus_baseline": True,
}
"""Whether whitening belongs to an advantage's definition; None leaves the choice (default: yes)."""


def objective_problems(config: Config) -> list[str]:
    """Options of an objective that is not the one chosen."""
    algorithm, problems = config.algorithm, []
    chosen = f"algorithm.advantage={algorithm.advantage!r}"
    if algorithm.advantage != "gae":
        idle = [f"algorithm.{name}" for name in ("gae_lambda", "value_clip", "value_coefficient")
                if differs(algorithm, name)]  # fmt: skip
        idle += [name for name in ("critic.init", "critic.optimizer") if differs(config.critic, name[7:])]
        problems += [f"{name} does nothing with {chosen}, which has no critic: remove it" for name in idle]
    if algorithm.compares_groups and differs(algorithm, "gamma"):
        problems.append(f"algorithm.gamma={algorithm.gamma:g} does nothing with {chosen}: remove it")
    if algorithm.compares_groups and config.rollout.samples_per_prompt < 2:
        problems.append(f"{chosen} compares the samples of one prompt: set rollout.samples_per_prompt to 2 or more")
    whitened = WHITENED[algorithm.advantage]
    if algorithm.whiten_advantages is not None and whitened not in (None, algorithm.whiten_advantages):
        other = "'dr_grpo'" if whitened else "'reinforce_plus_plus_baseline', the one that whitens"
        problems.append(
            f"{chosen} is defined {'with' if whitened else 'without'} whitening over the batch: remove "
            f"algorithm.whiten_advantages={str(algorithm.whiten_advantages).lower()}, or set algorithm.advantage to "
            f"{other}"
        )
    if algorithm.loss != "ppo" and algorithm.dual_clip is not None:
        problems.append(f"algorithm.dual_clip={algorithm.dual_clip:g} belongs to algorithm.loss='ppo': remove it")
    if config.rollout.drop_groups_without_signal and not algorithm.compares_groups:
        problems.append(
            f"rollout.drop_groups_without_signal with {chosen} would leave out samples that it learns from: remove it"
        )
    if config.rollout.refill_rounds and not config.rollout.drop_groups_without_signal:
        problems.append(
            f"rollout.refill_rounds={config.rollout.refill_rounds} does nothing without "
            "rollout.drop_groups_without_signal=true: set it, or remove refill_rounds"
        )
    return problems + _overlong_problems(config)


def _overlong_problems(config: Config) -> list[str]:
    reward, longest = config.reward, config.rollout.max_tokens
    if reward.overlong_tokens is None:
        if not differs(reward, "overlong_penalty"):
            return []
        return ["reward.overlong_penalty does nothing without reward.overlong_tokens: set it, or remove the penalty"]
    begins, ends = reward.overlong_tokens
    name = f"reward.overlong_tokens=[{begins}, {ends}]"
    if begins >= ends:
        return [f"{name}: the punishment must end after it begins"]
    if begins >= longest:
        return [f"{name} does nothing: no completion is longer than rollout.max_tokens={longest}"]
    if reward.overlong_penalty == 0.0:
        return [f"{name} does nothing with reward.overlong_penalty=0: remove both"]
    return []


def importance_problems(algorithm: Algorithm) -> list[str]:
    """Corrections for the sampler's log-probs that would do nothing."""
    cap, mask, problems = algorithm.importance_cap, algorithm.importance_mask, []
    if algorithm.old_logprobs == "sampler":
        for name, value in (("importance_cap", cap), ("importance_mask", mask and list(mask))):
            if value is not None:
                shown = f"{value:g}" if isinstance(value, float) else value
                problems.append(
                    f"algorithm.{name}={shown} does nothing with old_logprobs='sampler', whose ratio is to the sampler "
                    "already: remove it, or set algorithm.old_logprobs='learner'"
                )
    if not algorithm.corrects_importance and differs(algorithm, "importance_level"):
        problems.append(
            f"algorithm.importance_level={algorithm.importance_level!r} does nothing without importance_cap or "
            "importance_mask: set one, or remove it"
        )
    if mask is not None and not mask[0] < 1.0 < mask[1]:
        problems.append(f"algorithm.importance_mask={list(mask)} must hold 1, the ratio of equal policies, inside")
    elif mask is not None and cap is not None and cap >= mask[1]:
        problems.append(
            f"algorithm.importance_cap={cap:g} does nothing with importance_mask={list(mask)}, which drops what is "
            "above it: remove the cap, or lower it"
        )
    return problems


def differs(section: pydantic.BaseModel, name: str) -> bool:
    """Whether an option is not at its default; a written config.json has them all, so being written says nothing."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
