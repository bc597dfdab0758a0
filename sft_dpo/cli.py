"""The command line of the stages before RLVR. Each command imports what it needs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rlvr.errors import RlvrError
from sft_dpo import merge, quickstart_task

STAGES = {
    "sft": ("Sft", "sft_dpo.sft", "supervised fine-tuning"),
    "dpo": ("Dpo", "sft_dpo.dpo", "preference tuning: DPO, length-normalised DPO or SimPO"),
    "reward": ("Reward", "sft_dpo.reward_model", "a reward model from preference pairs"),
    "value": ("Value", "sft_dpo.value_model", "a critic from the start policy's own judged completions"),
}
"""Command: name of its recipe's schema in `sft_dpo.config`, module whose `work` reads what it needs, and help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(prog="sft_dpo", description="Make the starting policy.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, _, text) in STAGES.items():
        stage = commands.add_parser(name, help=f"{text} (start it with torchrun)")
        stage.add_argument("recipe", help="a .toml recipe")
        stage.add_argument("overrides", nargs="*", metavar="section.option=value", help="replace options of the recipe")
        stage.add_argument("--resume", action="store_true", help="continue the run in run_dir from its last checkpoint")
        stage.set_defaults(handler=_stage, stage=name)
    pairs = commands.add_parser("preferences", help="preference pairs from verdicts on sampled completions")
    pairs.add_argument("recipe", help="a .toml recipe")
    pairs.add_argument("overrides", nargs="*", metavar="section.option=value", help="replace options of the recipe")
    pairs.set_defaults(handler=_preferences)
    merge.add_command(commands)
    quickstart_task.add_command(commands)
    parsed, left = parser.parse_known_args(arguments)
    late = [text for text in left if "=" in text and not text.startswith("-")]
    if left and ("overrides" not in parsed or late != left):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:  # argparse takes no positional arguments after an option, as in `sft RECIPE --resume a.b=v`
        parsed.overrides += late
    try:
        return int(parsed.handler(parsed))
    except RlvrError as error:
        print(f"sft_dpo: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _stage(arguments: argparse.Namespace) -> int:
    from rlvr import environment, recipe, run_directory
    from sft_dpo import config

    schema, module, _ = STAGES[arguments.stage]
    environment.prepare(enforce_eager=True)
    loaded = recipe.load_as(getattr(config, schema), arguments.recipe, arguments.overrides)
    run_directory.RunDirectory(loaded.run_dir).refuse_if_used(resume=arguments.resume)
    text = run_directory.recipe_text(arguments.recipe, arguments.overrides)
    from sft_dpo import training

    training.run(loaded, importlib.import_module(module).work, recipe_text=text, resume=arguments.resume)
    return 0


def _preferences(arguments: argparse.Namespace) -> int:
    from rlvr import environment, recipe, run_directory
    from sft_dpo.config import Preferences

    config = recipe.load_as(Preferences, arguments.recipe, arguments.overrides)
    environment.prepare(enforce_eager=config.sampler.enforce_eager)
    run_directory.RunDirectory(config.run_dir).refuse_if_used(resume=False)
    from sft_dpo import preferences

    preferences.run(config, recipe_text=run_directory.recipe_text(arguments.recipe, arguments.overrides))
    return 0
