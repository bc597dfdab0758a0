"""The commands `data convert` and `decontaminate`."""

from __future__ import annotations

import argparse
import pathlib
import time

from rlvr.config import Decontamination, TextSource


def add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both to the parser of `python -m rlvr`."""
    _add_convert(commands)
    _add_decontaminate(commands)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rlvr.convert_formats import FORMATS

    below = commands.add_parser("data", help="make rows of public data").add_subparsers(
        required=True, metavar="COMMAND"
    )
    convert = below.add_parser("convert", help="write a public data set as messages, ground_truth, dataset")
    formats = convert.add_subparsers(required=True, metavar="FORMAT")
    for name, form in FORMATS.items():
        one = formats.add_parser(name, help=form.source)
        one.add_argument("input", metavar="IN", help="the published file, Parquet, a `datasets` folder or a Hub id")
        one.add_argument("output", type=pathlib.Path, metavar="OUT.jsonl")
        shots = "worked examples before each question, as Tülu 3 has them (default: 0)"
        if form.exemplars:
            one.add_argument("--shots", type=int, choices=(0, len(form.exemplars)), default=0, help=shots)
        splits = f"; of a file, by task id: {', '.join(form.splits)}" if form.splits else ""
        one.add_argument("--subset", help="of a Hub data set that has several, e.g. main of openai/gsm8k")
        one.add_argument("--split", help=f"split of a Hub data set (default: train){splits}")
        bad = (
            "rows that may be left out, because they cannot be read or their answer is not judged correct (default: 0)"
        )
        one.add_argument("--max-bad-share", type=float, default=0.0, help=bad)
        one.add_argument("--workers", type=int, default=1, help="processes of the verifier (default: 1)")
        one.set_defaults(handler=_convert, format=name)


def _convert(arguments: argparse.Namespace) -> int:
    from rlvr.convert import convert

    shots = getattr(arguments, "shots", 0)
    done = convert(
        arguments.format,
        arguments.input,
        arguments.output,
        shots=shots,
        subset=arguments.subset,
        split=arguments.split,
        max_bad_share=arguments.max_bad_share,
        workers=arguments.workers,
    )
    before = f", {shots} worked examples before each question" if shots else ""
    print(
        "\n".join([f"{arguments.output}: {done.summary()}{before}", *(f"  left out {text}" for text in done.problems)])
    )
    return 0


def _add_decontaminate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "decontaminate",
        help="find prompts of evaluation sets in training data",
        description="Exit status 1 when a training set is contaminated. FILE::column,column names what the prompt is; "
        "a set of the Hub is ID@SPLIT (default: train) or ID:SUBSET@SPLIT, e.g. openai/gsm8k:main@test::question.",
    )
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE", help="training data, in any layout")
    parser.add_argument("--eval", nargs="+", required=True, metavar="FILE", help="evaluation sets, in any layout")
    parser.add_argument("--report", type=pathlib.Path, metavar="OUT.json", help="write every overlap, with both texts")
    parser.add_argument("--show", type=int, default=3, help="overlaps printed for each pair of sets (default: 3)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    for name, field in Decontamination.model_fields.items():
        if name not in ("against", "action"):
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default: {field.default}")
    parser.set_defaults(handler=_decontaminate)


def _decontaminate(arguments: argparse.Namespace) -> int:
    from rlvr.decontaminate import search_files
    from rlvr.overlaps import write_report

    options = decontamination_options(arguments)
    started = time.perf_counter()
    reports = search_files(
        [text_source(text) for text in arguments.train],
        [text_source(text) for text in arguments.eval],
        options,
        workers=arguments.workers,
    )
    for report in reports:
        print("\n".join(report.lines(arguments.show)))
    seconds = time.perf_counter() - started
    rows = sum({report.training: report.training_rows for report in reports}.values())
    print(f"{rows:,} training rows in {seconds:.1f} s, reading the evaluation sets included")
    if arguments.report is not None:
        write_report(arguments.report, reports)
        print(f"every overlap: {arguments.report}")
    return 1 if any(report.contaminated for report in reports) else 0


def decontamination_options(arguments: argparse.Namespace) -> Decontamination:
    """The thresholds that were given. Raises ConfigError for those out of range."""
    from rlvr.recipe import validate

    given = {name: getattr(arguments, name) for name in Decontamination.model_fields if hasattr(arguments, name)}
    return validate(Decontamination, given, "the command line")


def text_source(text: str) -> TextSource:
    """`PATH[:SUBSET][@SPLIT][::column,column]`; what exists under its whole name has no subset or split in it.

    >>> text_source("svamp.jsonl::Body,Question").columns
    ['Body', 'Question']
    >>> hub = text_source("openai/gsm8k:main@test")
    >>> hub.path, hub.subset, hub.split
    ('openai/gsm8k', 'main', 'test')
    """
    path, _, names = text.partition("::")
    columns = [column for column in names.split(",") if column]
    if pathlib.Path(path).exists():
        return TextSource(path=path, columns=columns)
    path, _, split = path.partition("@")
    path, _, subset = path.partition(":")
    return TextSource(path=path, subset=subset or None, split=split or "train", columns=columns)
