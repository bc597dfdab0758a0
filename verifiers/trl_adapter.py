"""`trl`: a TRL-style reward function, `f(completions, **columns) -> list[float | None]`, as a verifier.

The calling convention is that of TRL's GRPOTrainer: every argument is a list with one entry per completion, and None
says that the function has no opinion. A function that returns None here gives an indeterminate verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import pydantic

from verifiers.base import Sample, Verdict, Verifier
from verifiers.errors import PluginError, VerifierOptionError
from verifiers.plugins import load_location
from verifiers.registry import register


@register("trl")
class TrlVerifier(Verifier):
    """A TRL-style reward function; a row's other columns are passed by name, as TRL does."""

    class Config(Verifier.Config):
        function: str
        """Where the reward function is: "file.py:reward" or "package.module:reward"."""
        ground_truth_column: str = "ground_truth"
        """The name under which the function receives the ground truth, such as `solution` or `answer`."""
        conversational: bool = False
        """Whether prompts and completions arrive as lists of messages."""
        minimum: float = pydantic.Field(default=0.0, allow_inf_nan=False)
        maximum: float = pydantic.Field(default=1.0, allow_inf_nan=False)
        """The range of rewards, mapped to scores of 0 and 1. A reward outside is a fault, so indeterminate."""

        @pydantic.model_validator(mode="after")
        def _in_order(self) -> TrlVerifier.Config:
            if self.minimum >= self.maximum:
                raise ValueError(f"minimum must lie below maximum; got {self.minimum} and {self.maximum}")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._function: Callable[..., Any] = load_location(self.config.function)
        if not callable(self._function):
            raise PluginError(
                f"verifier 'trl': {self.config.function!r} is not a function; it is {self._function!r:.100}."
            )
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except ValueError as error:  # some C functions do not tell
            raise PluginError(f"verifier 'trl': {self.config.function!r} is no reward function: {error}.") from error
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._required = {
            parameter.name
            for parameter in parameters
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        self._accepted = None if takes_any else {parameter.name for parameter in parameters}
        if self._accepted is not None and "completions" not in self._accepted:
            raise VerifierOptionError(
                f"verifier 'trl': {self.config.function!r} takes no 'completions'; a TRL reward function is "
                "f(completions, **columns) -> list of rewards."
            )

    def verify(self, sample: Sample) -> Verdict:
        arguments = self._arguments(sample)
        if missing := sorted(self._required - set(arguments)):
            return Verdict.indeterminate(
                f"the reward function needs {', '.join(map(repr, missing))}, and the row has no such column: set "
                f"ground_truth_column (now {self.config.ground_truth_column!r}) or add the column"
            )
        rewards = self._function(**arguments)
        if inspect.isawaitable(rewards):
            rewards = asyncio.run(_result(rewards))
        try:
            (reward,) = rewards
        except (TypeError, ValueError):
            return Verdict.indeterminate(
                f"the reward function returned {rewards!r:.80} for one completion, not a list of one"
            )
        if reward is None:
            return Verdict.indeterminate("the reward function returned None")
        if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            return Verdict.indeterminate(f"the reward function returned {reward!r:.80}, not a number")
        score = (float(reward) - self.config.minimum) / (self.config.maximum - self.config.minimum)
        if not 0.0 <= score <= 1.0:
            return Verdict.indeterminate(
                f"reward {reward!r} lies outside {self.config.minimum:g} to {self.config.maximum:g}; set both"
            )
        return Verdict.from_score(score, f"reward {reward!r}")

    def _arguments(self, sample: Sample) -> dict[str, list[Any]]:
        prompt: Any = sample.prompt
        completion: Any = sample.completion
        if self.config.conversational:
            prompt = [{"role": "user", "content": prompt}]
            completion = [{"role": "assistant", "content": completion}]
        arguments = {name: [value] for name, value in sample.columns.items()}
        arguments |= {
            self.config.ground_truth_column: [sample.ground_truth],
            "prompts": [prompt],
            "completions": [completion],
        }
        if self._accepted is None:
            return arguments
        return {name: value for name, value in arguments.items() if name in self._accepted}


async def _result(awaitable: Any) -> Any:
    return await awaitable
