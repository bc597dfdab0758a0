"""The command line. Each command imports what it needs, so that `check` answers without torch."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Sequence

from rlvr.errors import RlvrError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 for an error that the user can correct."""
    parser = build_parser()
    parsed, left = parser.parse_known_args(arguments)
    late = [text for text in left if "=" in text and not text.startswith("-")]
    if "overrides" not in parsed or late != left:
        if left:
            parser.error(f"unrecognized arguments: {' '.join(left)}")
    else:  # argparse takes no positional arguments after an option, as in `train RECIPE --resume a.b=v`
        parsed.overrides += late
    try:
        refuse_other_distribution()
        return int(parsed.handler(parsed))
    except RlvrError as error:
        print(f"rlvr: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    from rlvr.data_commands import add_data_commands
    from verifiers.commands import add_commands

    parser = argparse.ArgumentParser(prog="rlvr", description="Train a language model against verifiers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="run a recipe (start it with torchrun)")
    _recipe_arguments(train)
    train.add_argument("--resume", action="store_true", help="continue the run in run_dir from its newest checkpoint")
    train.set_defaults(handler=_train)
    check = commands.add_parser("check", help="validate a recipe without loading anything")
    _recipe_arguments(check)
    check.add_argument(
        "--gold",
        action="store_true",
        help="also judge each row's gold answer (correct?) and another row's (not correct?)",
    )
    check.set_defaults(handler=_check)
    report = commands.add_parser("report", help="print the results of a run")
    report.add_argument("run_dir")
    report.add_argument("--html", metavar="FILE", help="also write it as one HTML file, with curves")
    report.add_argument(
        "--figure", nargs="+", default=[], metavar="PNG", help="figures for it, e.g. a benchmark's plot"
    )
    report.set_defaults(handler=_report)
    add_data_commands(commands)
    add_commands(commands)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a .toml recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="replace options of the recipe")


def _train(arguments: argparse.Namespace) -> int:
    from rlvr import environment, recipe, run_directory, startup

    config = recipe.load(arguments.recipe, arguments.overrides)
    environment.prepare(enforce_eager=config.sampler.enforce_eager)
    run_directory.RunDirectory(config.run_dir).refuse_if_used(resume=arguments.resume)
    if os.environ.get("RANK", "0") == "0":
        for line in startup.check(config):
            print(line)
    from rlvr.train import train

    text = run_directory.recipe_text(arguments.recipe, arguments.overrides)
    train(config, recipe_text=text, resume=arguments.resume)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from rlvr import recipe, startup

    config = recipe.load(arguments.recipe, arguments.overrides)
    for line in startup.check(config):
        print(line)
    if arguments.gold:
        lines, is_clean = startup.check_gold_answers(config)
        print("\n".join(lines))
        if not is_clean:
            return 1
    print("ok")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from rlvr.report import report

    if arguments.figure and not arguments.html:
        raise RlvrError("--figure puts pictures into the HTML file: add --html FILE.")
    print(report(arguments.run_dir))
    if arguments.html:
        from rlvr.report_page import write_run_page

        write_run_page(arguments.run_dir, pathlib.Path(arguments.html), [pathlib.Path(one) for one in arguments.figure])
    return 0


def refuse_other_distribution() -> None:
    """Stop when the distribution `verifiers` is installed too: which package Python imports would be chance."""
    try:
        other = importlib.metadata.distribution("verifiers")
    except importlib.metadata.PackageNotFoundError:
        return
    raise RlvrError(
        f"two distributions install the import name `verifiers`: rlvr and verifiers {other.version}. Python imports "
        "whichever comes first. Use separate environments, or `pip uninstall verifiers`."
    )
