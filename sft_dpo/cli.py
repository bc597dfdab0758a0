"""The command line of the stages before RLVR."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlvr.errors import RlvrError
from sft_dpo import quickstart_task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(prog="sft_dpo", description="Make the starting policy.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sft = commands.add_parser("sft", help="supervised fine-tuning (start it with torchrun)")
    sft.add_argument("recipe", help="a .toml recipe")
    sft.add_argument("overrides", nargs="*", metavar="section.option=value", help="replace options of the recipe")
    sft.set_defaults(handler=_sft)
    quickstart_task.add_command(commands)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.handler(parsed))
    except RlvrError as error:
        print(f"sft_dpo: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _sft(arguments: argparse.Namespace) -> int:
    from rlvr import environment, recipe
    from sft_dpo.config import Sft

    environment.prepare(enforce_eager=True)
    config = recipe.load_as(Sft, arguments.recipe, arguments.overrides)
    from sft_dpo.sft import run

    run(config)
    return 0
