"""Checks that cost nothing, made before anything is loaded. No torch here."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Sequence

from rlvr.chat import TEMPLATES
from rlvr.config import Config, Source
from rlvr.data import LOCAL_SUFFIXES, Row, read_rows, verifier_key, verifier_names
from rlvr.errors import ConfigError, DataError
from rlvr.recipe import nearest_file
from verifiers import registry
from verifiers.base import Verifier
from verifiers.errors import GroundTruthError
from verifiers.gold import GoldRow, check_gold
from verifiers.registry import VerifierSpec

CRITIC_STARTS = ("policy", "scratch")
MOST_SHOWN = 10


def check(config: Config) -> list[str]:
    """Everything that can be known without loading a model: files, verifier names and options, rows.

    Returns a description of the run, line by line. Raises ConfigError, DataError or VerifierError.
    """
    sources = config.data.train + config.data.eval
    problems = [
        _unknown_template(config.model.chat_template),
        _missing_model("model.path", config.model.path),
        _unknown_critic(config.critic.init),
        *map(_unreadable_source, sources),
        _same_name(config.data.eval),
    ]
    found = [problem for problem in problems if problem]
    if found:
        header = f"the recipe names what is not there (looked in {pathlib.Path.cwd()}):"
        raise ConfigError("\n  ".join([header, *found]))
    local = [source for source in sources if _is_file(source.path)]
    elsewhere = [source for source in sources if not _is_file(source.path)]
    rows = {id(source): read_rows(source) for source in local}
    used = verifier_names(list(rows.values()))
    if not elsewhere:
        _refuse_idle_remap(config, verifier_names([rows[id(source)] for source in config.data.train]))
    replacing = {*map(verifier_key, config.verification.remap.values()), *_replacing(elsewhere)}
    build_verifiers(config, sorted({*used, *replacing}), all_known=not elsewhere)
    lines = [f"{source.path}: {len(rows[id(source)])} rows" for source in local]
    lines += [f"{source.path}: not a file, so its rows are read when the run starts" for source in elsewhere]
    return [*lines, *_description(config, used, all_known=not elsewhere)]


def _description(config: Config, used: Sequence[str], *, all_known: bool) -> list[str]:
    rollout, algorithm = config.rollout, config.algorithm
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    names = [*used] if all_known else [*used, "those that the rows not read here name"]
    return [
        f"verifiers: {', '.join(names)}",
        f"a step: {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples = {samples} samples, "
        f"{algorithm.epochs * algorithm.minibatches} optimizer steps ({algorithm.epochs} epochs x "
        f"{algorithm.minibatches} minibatches)",
        f"the run: {config.training.steps} steps, {config.training.steps * samples} samples -> {config.run_dir}",
    ]


def _replacing(sources: Sequence[Source]) -> set[str]:
    return {verifier_key(name) for source in sources for name in source.remap.values()}


def _refuse_idle_remap(config: Config, train_names: Sequence[str]) -> None:
    idle = sorted({verifier_key(name) for name in config.verification.remap} - set(train_names))
    if idle:
        raise ConfigError(
            f"verification.remap replaces {', '.join(idle)}, which no training row uses (rows use "
            f"{', '.join(train_names)}). Correct the name, or remove it."
        )


def build_verifiers(config: Config, names: Sequence[str], *, all_known: bool = True) -> dict[str, Verifier]:
    """Build each verifier once.

    Args:
        all_known: `names` are all that the run will use, so that options for another one are a mistake.

    Raises VerifierError for an unknown name or a wrong option, ConfigError for options of a verifier that is not used.
    """
    options = {verifier_key(name): value for name, value in config.verification.options.items()}
    unused = sorted(set(options) - set(names))
    if unused and all_known:
        raise ConfigError(
            f"verification.options has options for {', '.join(unused)}, which no row uses "
            f"(rows use {', '.join(names)}). Remove them, or correct the name."
        )
    plugins = tuple(config.plugins)
    return {
        name: registry.build(VerifierSpec(name=name, options=options.get(name, {}), plugins=plugins)) for name in names
    }


def check_ground_truths(config: Config, row_sets: Sequence[Sequence[Row]]) -> None:
    """Have every verifier read every ground truth of its rows.

    Raises DataError listing the rows that cannot be read: their verdicts could only be indeterminate.
    """
    names = verifier_names(row_sets)
    remapped = sorted({*map(verifier_key, config.verification.remap.values())} - set(names))
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
        count = "1 ground truth" if len(problems) == 1 else f"{len(problems)} ground truths"
        raise DataError(f"{count} cannot be read; correct or remove:\n  {shown}{more}")


def check_gold_answers(config: Config) -> tuple[list[str], bool]:
    """Judge each row's gold answer, which must be correct, and another row's, which must not be.

    Returns what was found, line by line, and whether there was nothing to object to. Rows of local files only.
    """
    rows = [
        row for source in config.data.train + config.data.eval if _is_file(source.path) for row in read_rows(source)
    ]
    tasks = [(row, task) for row in rows for task in row.tasks]
    names = sorted({task.verifier for _, task in tasks})
    options = {verifier_key(name): value for name, value in config.verification.options.items()}
    plugins = tuple(config.plugins)
    specs = {name: VerifierSpec(name=name, options=options.get(name, {}), plugins=plugins) for name in names}
    report = check_gold(
        [
            GoldRow(
                row=index,
                verifier=task.verifier,
                ground_truth=task.ground_truth,
                prompt=row.messages[-1]["content"],
                columns=row.columns,
            )
            for index, (row, task) in enumerate(tasks)
        ],
        specs,
        workers=config.verification.workers,
        timeout_seconds=config.verification.timeout_seconds,
    )
    lines = [f"{tasks[e.row][0].place}: {e.verifier}: {e.fault}: {e.detail}" for e in report.exceptions]
    lines.append(
        f"gold: {report.correct} of {report.rows} own answers correct, {report.compared} shown another row's, "
        f"{len(report.without_gold)} without a gold completion, {len(report.exceptions)} exceptions"
    )
    return lines, not report.exceptions


def _is_file(path: str) -> bool:
    return pathlib.Path(path).is_file()


def _unknown_template(name: str | None) -> str | None:
    if name is None or name in TEMPLATES:
        return None
    near = difflib.get_close_matches(name, TEMPLATES, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(TEMPLATES)}."
    return f"model.chat_template={name!r}: no such template ships. {hint}"


def _unreadable_source(source: Source) -> str | None:
    path = pathlib.Path(source.path)
    if path.suffix in LOCAL_SUFFIXES and not path.is_file():
        return f"{source.path}: no such file of rows.{nearest_file(path)}"
    if not path.exists():
        no_such = f"{source.path}: no such file or folder of rows.{nearest_file(path)}"
        return no_such if _is_no_hub_id(source.path) else None
    if path.is_file() and path.suffix not in LOCAL_SUFFIXES:
        return f"{source.path}: a file of rows ends in {', '.join(LOCAL_SUFFIXES)}. Convert it."
    if path.is_file() and source.split != Source.model_fields["split"].default:
        return f"{source.path}: split={source.split!r} does nothing, because a file is one split. Remove it."
    return None


def _same_name(held_out: Sequence[Source]) -> str | None:
    """Held-out sets are reported by file name, so two of one name would be taken for one."""
    stems = [pathlib.Path(source.path).stem for source in held_out]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    return f"data.eval has more than one set called {', '.join(twice)}: rename the files" if twice else None


def _unknown_critic(init: str) -> str | None:
    if init in CRITIC_STARTS or "/" in init or pathlib.Path(init).exists():
        return None if init in CRITIC_STARTS else _missing_model("critic.init", init)
    near = difflib.get_close_matches(init, CRITIC_STARTS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"critic.init={init!r}: neither {' nor '.join(CRITIC_STARTS)}, nor a folder.{hint}"


def _missing_model(option: str, value: str) -> str | None:
    """A path that cannot be a Hub id must be a folder with a config.json."""
    path = pathlib.Path(value)
    if path.exists():
        return None if (path / "config.json").is_file() else f"{option}={value!r}: no config.json in it"
    return f"{option}={value!r}: no such folder.{nearest_file(path)}" if _is_no_hub_id(value) else None


def _is_no_hub_id(path: str) -> bool:
    """A Hub id is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or len(pathlib.Path(path).parts) > 2
