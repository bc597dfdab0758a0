"""Checks that cost nothing, made before anything is loaded. No torch here."""

from __future__ import annotations

import collections
import difflib
import json
import pathlib
from collections.abc import Iterable, Sequence

from rlvr import judges
from rlvr.chat import TEMPLATES
from rlvr.config import Config, Source
from rlvr.contradictions import indivisible
from rlvr.data import Row, read_source, read_training, verifier_key
from rlvr.data_report import parts_of
from rlvr.errors import ConfigError, DataError
from rlvr.prompts import verifier_names
from rlvr.recipe import nearest_file
from rlvr.row_files import LOCAL_SUFFIXES
from verifiers import registry
from verifiers.base import Use, Verifier
from verifiers.errors import GroundTruthError
from verifiers.gold import GoldRow, check_gold

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
        _indivisible_model(config),
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
    rows = {id(source): read_source(config.data, source, config.plugins) for source in local}
    train, held_out = (
        verifier_names([rows[id(source)] for source in part if source in local])
        for part in (config.data.train, config.data.eval)
    )
    if not elsewhere:
        _refuse_idle_remap(config, train)
        _refuse_idle_options(config, train, held_out)
    remapped = map(verifier_key, config.verification.remap.values())
    build_verifiers(config, {*train, *remapped, *_replacing(config.data.train, elsewhere)}, "training")
    build_verifiers(config, {*held_out, *_replacing(config.data.eval, elsewhere)}, "evaluation")
    lines = [rows[id(source)].counts.line() for source in local]
    lines += [f"{source.path}: not a file, so its rows are read when the run starts" for source in elsewhere]
    if config.data.decontaminate.against and not elsewhere:
        cleaned = read_training(config.data, config.plugins)
        lines += [report.lines(0)[0] for part in parts_of(cleaned) for report in part.contamination]
    return [*lines, *_description(config, sorted({*train, *held_out}), all_known=not elsewhere)]


def _description(config: Config, used: Sequence[str], *, all_known: bool) -> list[str]:
    rollout, algorithm = config.rollout, config.algorithm
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    names = [*used] if all_known else [*used, "those that the rows not read here name"]
    return [
        f"verifiers: {', '.join(names)}",
        *[f"  {line}" for name in used if (line := judges.describe_training(config, name))],
        f"a step: {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples = {samples} samples, "
        f"{algorithm.epochs * algorithm.minibatches} optimizer steps ({algorithm.epochs} epochs x "
        f"{algorithm.minibatches} minibatches)",
        *_placement_lines(config),
        f"the run: {config.training.steps} steps, {config.training.steps * samples} samples -> {config.run_dir}",
    ]


def _placement_lines(config: Config) -> list[str]:
    placement = config.placement
    if placement.mode == "colocated":
        return []
    learners, samplers = placement.learner_ranks or 0, placement.sampler_ranks or 0
    ahead = "" if config.asynchronous is None else f", up to {config.asynchronous.max_staleness} steps ahead"
    size = config.sampler.tensor_parallel_size
    engines = "" if size == 1 else f" with {samplers // size} vLLM engines of {size} ranks"
    return [f"placement: the first {learners} of {learners + samplers} ranks learn, the others sample{engines}{ahead}"]


def _replacing(sources: Sequence[Source], elsewhere: Sequence[Source]) -> set[str]:
    """Verifiers that are known to be needed by rows that are not read here."""
    return {verifier_key(name) for source in sources if source in elsewhere for name in source.remap.values()}


def _refuse_idle_remap(config: Config, train_names: Sequence[str]) -> None:
    idle = sorted({verifier_key(name) for name in config.verification.remap} - set(train_names))
    if idle:
        raise ConfigError(
            f"verification.remap replaces {', '.join(idle)}, which no training row uses (rows use "
            f"{', '.join(train_names)}). Correct the name, or remove it."
        )


def _refuse_idle_options(config: Config, train: Sequence[str], held_out: Sequence[str]) -> None:
    """Options of a verifier that judges nothing are a mistake in its name."""
    rewarding = {*train, *map(verifier_key, config.verification.remap.values())}
    for option, named, used, rows in (
        ("verification.options", config.verification.options, {*rewarding, *held_out}, "row"),
        ("evaluation.options", config.evaluation.options, {*held_out}, "held-out row"),
    ):
        unused = sorted({*map(verifier_key, named)} - used)
        if unused:
            raise ConfigError(
                f"{option} has options for {', '.join(unused)}, which no {rows} uses "
                f"({rows}s use {', '.join(sorted(used))}). Remove them, or correct the name."
            )


def build_verifiers(config: Config, names: Iterable[str], use: Use) -> dict[str, Verifier]:
    """Build each verifier once, as it judges in this use. Raises VerifierError: unknown name, wrong option."""
    return {name: registry.build(judges.spec(config, name, use)) for name in sorted(names)}


def check_ground_truths(config: Config, row_sets: Sequence[Sequence[Row]]) -> None:
    """Have every verifier read every ground truth of its rows.

    Args:
        row_sets: the training rows, then each held-out set.

    Raises DataError listing the rows that cannot be read: their verdicts could only be indeterminate.
    """
    _refuse_idle_options(config, verifier_names(row_sets[:1]), verifier_names(row_sets[1:]))
    training = build_verifiers(config, verifier_names(row_sets[:1]), "training")
    build_verifiers(config, map(verifier_key, config.verification.remap.values()), "training")
    evaluation = build_verifiers(config, verifier_names(row_sets[1:]), "evaluation")
    problems = []
    for number, rows in enumerate(row_sets):
        verifiers = training if number == 0 else evaluation
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
    uses: list[tuple[Use, list[Source]]] = [("training", config.data.train), ("evaluation", config.data.eval)]
    tasks = [
        (use, row, task)
        for use, sources in uses
        for source in sources
        if _is_file(source.path)
        for row in read_source(config.data, source, config.plugins)
        for task in row.tasks
    ]
    names = {(use, task.verifier) for use, _, task in tasks}
    in_pool = {(use, name): judges.name_in_pool(config, name, use) for use, name in names}
    report = check_gold(
        [
            GoldRow(
                row=index,
                verifier=in_pool[use, task.verifier],
                ground_truth=task.ground_truth,
                prompt=row.messages[-1]["content"],
                columns=row.columns,
            )
            for index, (use, row, task) in enumerate(tasks)
        ],
        {in_pool[use, name]: judges.spec(config, name, use) for use, name in names},
        workers=config.verification.workers,
        timeout_seconds=config.verification.timeout_seconds,
    )
    lines = [f"{tasks[e.row][1].place}: {e.verifier}: {e.fault}: {e.detail}" for e in report.exceptions]
    lines.append(
        f"gold: {report.correct} of {report.rows} own answers correct, {report.compared} shown another row's, "
        f"{len(report.exceptions)} exceptions"
    )
    lines += _unchecked(in_pool[tasks[index][0], tasks[index][2].verifier] for index in report.without_gold)
    return lines, not report.exceptions


def _unchecked(names: Iterable[str]) -> list[str]:
    """One line for each verifier that has no gold answers: not checked is not the same as sound."""
    return [
        f"gold: NOT CHECKED: {count} {'row' if count == 1 else 'rows'} of {name}, which cannot write an answer that "
        "must be correct; their ground truths can be read, and no more is known"
        for name, count in sorted(collections.Counter(names).items())
    ]


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


def _indivisible_model(config: Config) -> str | None:
    """A folder's model that cannot be split over the ranks of an engine."""
    file = pathlib.Path(config.model.path) / "config.json"
    if not file.is_file():
        return None
    fault = indivisible(json.loads(file.read_text()), config.sampler.tensor_parallel_size)
    return fault and f"model.path={config.model.path!r}: {fault}"


def _is_no_hub_id(path: str) -> bool:
    """A Hub id is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or len(pathlib.Path(path).parts) > 2
