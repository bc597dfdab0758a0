"""Options that exclude each other, or that would do nothing in a run: one text each, with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pydantic

if TYPE_CHECKING:
    from rlvr.config import Algorithm, Config, Learner, Model, RowOptions

WHITENED: dict[str, bool | None] = {
    "gae": None,
    "reinforce_plus_plus": None,
    "grpo": False,
    "dr_grpo": False,
    "rloo": False,
    "reinforce_plus_plus_baseline": True,
}
"""Whether whitening belongs to an advantage's definition; None leaves the choice (default: yes)."""

VOCABULARY_PADDING = 64
"""vLLM rounds the vocabulary up to a multiple of this before it is split."""


def contradictions(config: Config) -> list[str]:
    """Options that exclude each other, or that would do nothing in this run."""
    return [
        *_impossible(config),
        *row_problems(config.data),
        *objective_problems(config),
        *importance_problems(config.algorithm),
        *engine_problems(config.model, config.learner),
        *idle_engines(config),
        *_idle_evaluation(config),
        *placement_problems(config),
        *asynchronous_problems(config),
    ]


def _impossible(config: Config) -> list[str]:
    problems = []
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    if config.algorithm.minibatches > samples:
        problems.append(
            f"algorithm.minibatches={config.algorithm.minibatches} is more than the {samples} samples of a step "
            "(rollout.prompts_per_step x rollout.samples_per_prompt): lower it"
        )
    if config.rollout.min_tokens > config.rollout.max_tokens:
        problems.append(
            f"rollout.min_tokens={config.rollout.min_tokens} is more than max_tokens={config.rollout.max_tokens}: "
            "lower it"
        )
    if config.verification.timeout_seconds >= config.training.stall_timeout_seconds:
        problems.append(
            f"verification.timeout_seconds={config.verification.timeout_seconds:g} is not below "
            f"training.stall_timeout_seconds={config.training.stall_timeout_seconds:g}: a rank that waits for a slow "
            "verifier would be taken for one that hangs. Raise the second"
        )
    if config.algorithm.old_logprobs == "sampler" and config.rollout.truncates:
        problems.append(
            "algorithm.old_logprobs='sampler' with truncated sampling (rollout.top_p, top_k, min_p, min_tokens) "
            "would divide by the probability among the kept tokens, so that the ratio begins below 1: set "
            "algorithm.old_logprobs='learner', or sample from the whole softmax"
        )
    if config.algorithm.kl_placement == "loss" and config.algorithm.kl_coefficient == 0.0:
        problems.append("algorithm.kl_placement='loss' does nothing with kl_coefficient=0: remove one")
    elif config.algorithm.kl_placement == "loss" and config.algorithm.kl_estimator == "k1":
        problems.append(
            "algorithm.kl_estimator='k1' with kl_placement='loss' holds the policy to nothing: the gradient of k1 is "
            "that of log p(token), whose mean is 0 and in which the reference does not occur. Use 'k2' or 'k3'"
        )
    if config.algorithm.kl_coefficient == 0.0 and differs(config.algorithm, "kl_estimator"):
        problems.append(
            f"algorithm.kl_estimator={config.algorithm.kl_estimator!r} does nothing with kl_coefficient=0: remove one"
        )
    return problems


def row_problems(data: RowOptions) -> list[str]:
    """Options of reading that would do nothing."""
    changed = [name for name in type(data.decontaminate).model_fields if differs(data.decontaminate, name)]
    if data.decontaminate.against or not changed:
        return []
    return [f"data.decontaminate.{changed[0]} does nothing without data.decontaminate.against: remove one"]


def _idle_evaluation(config: Config) -> list[str]:
    """Options of the evaluation that are set where none takes place."""
    if config.data.eval and config.evaluation.enabled:
        return []
    reason = "with evaluation.enabled=false" if config.data.eval else "without data.eval"
    problems = []
    if config.training.evaluate_every is not None:
        problems.append(f"training.evaluate_every={config.training.evaluate_every} does nothing {reason}: remove one")
    if differs(config.evaluation, "samples_per_prompt"):
        count = config.evaluation.samples_per_prompt
        problems.append(f"evaluation.samples_per_prompt={count} does nothing {reason}: remove one")
    if differs(config.evaluation, "options"):
        names = ", ".join(config.evaluation.options)
        problems.append(f"evaluation.options (of {names}) does nothing {reason}: remove one")
    return problems


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


def placement_problems(config: Config) -> list[str]:
    """Options of the placement that is not the one chosen, and ranks that do not add up."""
    placement = config.placement
    if placement.mode == "colocated":
        return [
            f"placement.{name}={getattr(placement, name)} does nothing with placement.mode='colocated': remove it, or "
            "set mode='disaggregated'"
            for name in type(placement).model_fields
            if name != "mode" and differs(placement, name)
        ]
    problems = []
    if placement.learner_ranks is None or placement.sampler_ranks is None:
        problems.append(
            "placement.mode='disaggregated' needs placement.learner_ranks and placement.sampler_ranks: how many of "
            "torchrun's ranks learn, and how many sample"
        )
    elif placement.share_gpus and placement.sampler_ranks > placement.learner_ranks:
        problems.append(
            f"placement.share_gpus=true with sampler_ranks={placement.sampler_ranks} and learner_ranks="
            f"{placement.learner_ranks}: each sampler shares the GPU of one learner, so there can be no more of them"
        )
    size, ranks = config.sampler.tensor_parallel_size, placement.sampler_ranks
    if placement.share_gpus and size > 1:
        problems.append(
            "placement.share_gpus=true gives each sampler the GPU of one learner, and sampler.tensor_parallel_size="
            f"{size} gives it {size}: remove one"
        )
    if ranks is not None and ranks % size:
        problems.append(
            f"sampler.tensor_parallel_size={size} does not divide placement.sampler_ranks={ranks}: each engine takes "
            f"{size} ranks. Change one of them"
        )
    if differs(config.sampler, "sleep"):
        problems.append(
            "sampler.sleep=false does nothing with placement.mode='disaggregated', where the sampler has its ranks for "
            "itself: remove one"
        )
    return problems


def indivisible(model: Mapping[str, Any], size: int) -> str | None:
    """Why a model cannot be split over the `size` ranks of one engine, where vLLM would stop with an assertion.

    Args:
        model: its config.json.

    >>> shape = {"num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936}
    >>> indivisible(shape, 2)
    >>> indivisible(shape, 4)
    'sampler.tensor_parallel_size=4 does not divide num_attention_heads=14: set it to 1, 2'
    """
    faults = _indivisible_parts(model, size)
    if not faults:
        return None
    heads = model.get("num_attention_heads") or 1
    possible = [str(other) for other in range(1, heads + 1) if not _indivisible_parts(model, other)]
    return f"sampler.tensor_parallel_size={size} does not divide {', '.join(faults)}: set it to {', '.join(possible)}"


def _indivisible_parts(model: Mapping[str, Any], size: int) -> list[str]:
    """Of what the configuration names; a family may have none of them."""
    parts = ("num_attention_heads", "intermediate_size")
    found = [f"{name}={model[name]}" for name in parts if (model.get(name) or 0) % size]
    shared = model.get("num_key_value_heads") or size
    if shared % size and size % shared:  # heads that are fewer than the ranks are on several of them
        found.append(f"num_key_value_heads={shared}")
    vocabulary = model.get("vocab_size") or 0
    if -(-vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING % size:
        found.append(f"vocab_size={vocabulary} (rounded up to a multiple of {VOCABULARY_PADDING})")
    return found


def asynchronous_problems(config: Config) -> list[str]:
    """Sampling ahead needs ranks of its own, and a loss that knows whose samples it learns from."""
    options, algorithm = config.asynchronous, config.algorithm
    if options is None:
        return []
    problems = []
    if config.placement.mode == "colocated":
        problems.append(
            "asynchronous needs placement.mode='disaggregated': a colocated engine sleeps while its rank learns"
        )
    if options.max_staleness == 0 and options.recompute_kv_cache:
        problems.append(
            "asynchronous.recompute_kv_cache does nothing with max_staleness=0, where no sample is unfinished when "
            "weights arrive: remove one"
        )
    weighted = algorithm.importance_cap is not None or algorithm.importance_mask is not None
    if options.max_staleness > 0 and algorithm.old_logprobs == "learner" and not weighted:
        problems.append(
            f"asynchronous.max_staleness={options.max_staleness} learns from samples of older weights: set "
            "algorithm.importance_cap (Olmo 3: 2.0) or importance_mask, which weight by learner over sampler, or "
            "algorithm.old_logprobs='sampler'"
        )
    return problems


def engine_problems(model: Model, learner: Learner) -> list[str]:
    """Combinations that DeepSpeed cannot do or does wrongly, whatever the stage of training."""
    problems = []
    if learner.offload_optimizer and learner.zero_stage == 0:
        problems.append("learner.offload_optimizer=true needs split state: set learner.zero_stage to 1, 2 or 3")
    if learner.offload_parameters and learner.zero_stage != 3:
        problems.append(
            f"learner.offload_parameters=true with zero_stage={learner.zero_stage}: only stage 3 splits weights: "
            "set learner.zero_stage=3"
        )
    if model.lora is not None and any(name.split(".")[-1] == "lm_head" for name in model.lora.target_modules):
        problems.append("model.lora.target_modules names 'lm_head', which is computed in chunks and cannot be adapted")
    if model.dtype == "bfloat16" and learner.zero_stage == 0:
        problems.append(
            "model.dtype='bfloat16' with learner.zero_stage=0 takes DeepSpeed's FP16_UnfusedOptimizer, whose first "
            "Adam steps are wrong (bias correction): set learner.zero_stage to 1, 2 or 3, or model.dtype to 'float32'"
        )
    return problems


def idle_engines(config: Config) -> list[str]:
    """Options of engines that this run does not have."""
    problems = []
    if config.learner.offload_reference and config.algorithm.kl_coefficient == 0.0:
        problems.append("learner.offload_reference=true does nothing with algorithm.kl_coefficient=0: remove one")
    if config.model.lora is not None and config.learner.offload_reference:
        problems.append(
            "learner.offload_reference=true does nothing with model.lora, whose reference is the policy with its "
            "adapters off: remove one"
        )
    if config.model.lora is not None and config.critic.init == "scratch":
        problems.append(
            "critic.init='scratch' with model.lora would train adapters of a network of random weights: set "
            "critic.init to 'policy' or to a reward model"
        )
    return problems


def differs(section: pydantic.BaseModel, name: str) -> bool:
    """Whether an option is not at its default; a written config.json has them all, so being written says nothing."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
