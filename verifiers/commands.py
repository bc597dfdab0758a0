"""The commands `verifiers` (listing), `verifiers test` (acceptance gate) and `verify` (score a file)."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from verifiers import registry
from verifiers.errors import UnknownVerifierError, VerifierOptionError

if TYPE_CHECKING:
    from verifiers.acceptance import Report

TABLES = pathlib.Path(__file__).resolve().parent / "tables"
"""Acceptance tables of the built-in verifiers; `tests/acceptance` is a link to them."""


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `verifiers` and `verify`; each parser sets `handler`: parsed arguments to exit status."""
    listing = subparsers.add_parser("verifiers", help="list the verifiers, or test one against its table of cases")
    _add_plugin_option(listing)
    listing.set_defaults(handler=_list)
    below = listing.add_subparsers(metavar="[test]")
    test = below.add_parser("test", help="run acceptance tables: false negatives, false positives, repeatability, time")
    test.add_argument("name", nargs="*", help="verifiers to test; all with a table when left out")
    _add_plugin_option(test, default=argparse.SUPPRESS)  # a default here would undo one given before `test`
    test.add_argument(
        "--cases",
        type=pathlib.Path,
        help="table of cases (default: verifiers/tables/NAME.jsonl, or beside --plugin FILE.py)",
    )
    _add_pool_options(test)
    test.set_defaults(handler=_test)
    verify = subparsers.add_parser("verify", help="score a JSONL file of completions")
    verify.add_argument("--verifier", required=True, metavar="NAME", help="registered name, or file.py:Attr")
    verify.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the verifier; VALUE is JSON, or else text",
    )
    _add_plugin_option(verify)
    verify.add_argument(
        "--input", required=True, type=pathlib.Path, help='rows {"id", "completion", "ground_truth", ...}'
    )
    verify.add_argument(
        "--output", required=True, type=pathlib.Path, help='rows {"id", "outcome", "score", "detail", "seconds"}'
    )
    _add_pool_options(verify)
    verify.set_defaults(handler=_verify)


def _add_plugin_option(parser: argparse.ArgumentParser, default: object = None) -> None:
    text = "Python file that registers verifiers; may be repeated"
    parser.add_argument("--plugin", action="append", default=default, metavar="FILE", help=text)


def _add_pool_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--timeout-seconds", type=float, default=10.0, help="limit of one verdict (default: 10)")


def _list(arguments: argparse.Namespace) -> int:
    from verifiers.listing import describe, format_listing

    print(format_listing(describe(arguments.plugin or ())))
    print(f"\n{registry.HOW_TO_ADD}")
    return 0


def _test(arguments: argparse.Namespace) -> int:
    from verifiers.acceptance import format_reports

    reports = run_gate(
        arguments.name,
        plugins=arguments.plugin or (),
        cases=arguments.cases,
        workers=arguments.workers,
        timeout_seconds=arguments.timeout_seconds,
    )
    print(format_reports(reports))
    tested = {report.verifier.casefold() for report in reports}
    untested = [] if arguments.name or arguments.plugin else sorted(set(registry.BUILTIN) - tested)
    if untested:
        print(f"without a table, so not tested: {', '.join(untested)}")
    return 0 if all(report.has_passed for report in reports) and not untested else 1


def run_gate(
    names: Sequence[str],
    *,
    plugins: Sequence[str] = (),
    cases: pathlib.Path | None = None,
    workers: int = 1,
    timeout_seconds: float = 10.0,
) -> list[Report]:
    """Run the acceptance tables of `names`; without names, of what `plugins` register, or of every built-in verifier.

    Raises AcceptanceTableError for a missing or unreadable table, and what building a verifier raises.
    """
    from verifiers.acceptance import load_cases, run_table

    reports = []
    for name, table in _tables(names, plugins, cases):
        numbered = [(line, case) for line, case in load_cases(table) if case.verifier in (None, name)]
        reports.append(run_table(name, numbered, plugins=plugins, workers=workers, timeout_seconds=timeout_seconds))
    return reports


def _tables(
    names: Sequence[str], plugins: Sequence[str], cases: pathlib.Path | None
) -> Iterator[tuple[str, pathlib.Path]]:
    of_plugin = {name: file for file in plugins for name in registry.load_plugin(file)}
    if not names:
        names = list(of_plugin) or sorted(path.stem for path in TABLES.glob("*.jsonl"))
    if not names:
        raise UnknownVerifierError(f"no acceptance tables in {TABLES}; name a verifier and give its --cases.")
    for name in names:
        if cases is not None:
            yield name, cases
        elif name.casefold() in of_plugin:
            yield name, pathlib.Path(of_plugin[name.casefold()]).with_suffix(".jsonl")
        else:
            registry.resolve(name)
            yield name, TABLES / f"{name.casefold()}.jsonl"


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options from `KEY=VALUE`; a VALUE that is not JSON is text.

    Raises VerifierOptionError for a pair without '=' and for a key given twice.

    >>> parse_options(["mode=choice", "minimum=3", "ignore_case=true"])
    {'mode': 'choice', 'minimum': 3, 'ignore_case': True}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or key in options:
            raise VerifierOptionError(f"--option needs KEY=VALUE, each key once; got {pair!r}.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _verify(arguments: argparse.Namespace) -> int:
    from verifiers.score_file import score_file

    spec = registry.VerifierSpec(
        name=arguments.verifier, options=parse_options(arguments.option), plugins=tuple(arguments.plugin or ())
    )
    summary = score_file(
        spec, arguments.input, arguments.output, workers=arguments.workers, timeout_seconds=arguments.timeout_seconds
    )
    print(summary)
    return 0
