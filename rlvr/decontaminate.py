"""Training prompts that occur in evaluation sets: found, reported side by side, removed or refused.

The method is that of Tülu 3 (arXiv 2411.15124, section 3.2; allenai/open-instruct, decontamination/search.py): prompts
only; an evaluation instance overlaps when more than half of its words lie in 8-grams of one and the same training
prompt; a training set is contaminated when more than 2% of an evaluation set's instances overlap. Different here: no
search server, so every match counts and not only the first hits; words are runs of letters and digits in lower case
(spaCy tokens there, matched by a server that drops their punctuation); and any column of text can be compared.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from rlvr.config import Decontamination, TextSource
from rlvr.errors import DataError
from rlvr.ngrams import NgramIndex
from rlvr.overlaps import Overlap, PairReport
from rlvr.rows import MOST_SHOWN, Rows
from rlvr.texts import Block, Text, blocks, name_of, texts_in

T = TypeVar("T")
TEXTS_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A training row and an instance that overlap."""

    row: int
    """Number of the row in its block."""
    instance: int
    words: int
    """Of the instance, that are matched."""
    text: Text
    """The row."""


class Evaluations:
    """The evaluation sets, indexed together."""

    def __init__(self, sources: Sequence[TextSource], options: Decontamination) -> None:
        """Raises DataError for sets that cannot be read, and rows without text."""
        self.options = options
        self.sets: list[tuple[str, range]] = []
        texts: list[Text] = []
        for source in sources:
            own = [text for block in blocks(source) for text in texts_in(block)]
            if not own:
                raise DataError(f"{source.path} holds no rows")
            self.sets.append((name_of(source), range(len(texts), len(texts) + len(own))))
            texts += own
        self.texts = texts
        self.index = NgramIndex([text.turns for text in texts], options.ngram)

    def hits(self, texts: Sequence[Text]) -> list[Hit]:
        """Overlaps of some training rows. Each turn is compared by itself, as one instance."""
        row_of = np.repeat(np.arange(len(texts)), [len(text.turns) for text in texts])
        turns = [turn for text in texts for turn in text.turns]
        found = self.index.match(turns, self.options.min_overlap)
        rows = row_of[found.texts].tolist() if len(found.texts) else []
        return [
            Hit(row=row, instance=instance, words=words, text=texts[row])
            for row, instance, words in zip(rows, found.instances.tolist(), found.words.tolist(), strict=True)
        ]


class Findings:
    """The hits of one training set, collected block by block."""

    def __init__(self, evaluations: Evaluations, path: str) -> None:
        self._evaluations, self._path = evaluations, path
        self.rows = 0
        self._best: dict[int, Hit] = {}
        self._places: dict[int, dict[str, None]] = collections.defaultdict(dict)
        self.matching: set[int] = set()
        """Numbers of the training rows that some instance overlaps with."""
        starts = [members.start for _, members in evaluations.sets]
        self._set_of = np.repeat(np.arange(len(starts)), [len(members) for _, members in evaluations.sets]).tolist()

    def add(self, rows: int, hits: Iterable[Hit]) -> None:
        """Enter the hits of the next `rows` rows."""
        for hit in hits:
            self.matching.add(self.rows + hit.row)
            self._places[self._set_of[hit.instance]][hit.text.place] = None
            if hit.instance not in self._best or hit.words > self._best[hit.instance].words:
                self._best[hit.instance] = hit
        self.rows += rows

    def reports(self) -> list[PairReport]:
        """One for each evaluation set."""
        return [self._report(number, path, members) for number, (path, members) in enumerate(self._evaluations.sets)]

    def _report(self, number: int, path: str, members: range) -> PairReport:
        lengths = self._evaluations.index.lengths
        overlaps = [
            Overlap(
                evaluation=self._evaluations.texts[instance],
                training=self._best[instance].text,
                share=self._best[instance].words / int(lengths[instance]),
            )
            for instance in members
            if instance in self._best
        ]
        return PairReport(
            training=self._path,
            evaluation=path,
            training_rows=self.rows,
            instances=len(members),
            too_short=int((lengths[members.start : members.stop] < self._evaluations.options.ngram).sum()),
            overlaps=tuple(overlaps),
            matching_rows=tuple(self._places[number]),
            max_contaminated=self._evaluations.options.max_contaminated,
        )


def search_files(
    training: Sequence[TextSource], against: Sequence[TextSource], options: Decontamination, *, workers: int
) -> list[PairReport]:
    """Compare every training file with every evaluation set. Training files are read block by block, once.

    Args:
        workers: processes that read and compare; 1 does it in this process.

    Returns a report for each pair. Raises DataError.
    """
    evaluations = Evaluations(against, options)
    reports: list[PairReport] = []
    with _Pool(evaluations, workers) as pool:
        for source in training:
            findings = Findings(evaluations, name_of(source))
            for rows, hits in pool.search(blocks(source)):
                findings.add(rows, hits)
            if not findings.rows:
                raise DataError(f"{source.path} holds no rows")
            reports += findings.reports()
    return reports


_evaluations: Evaluations | None = None
"""Of a worker process."""


def _start_worker(evaluations: Evaluations) -> None:
    global _evaluations
    _evaluations = evaluations


def _search_block(block: Block) -> tuple[int, list[Hit]]:
    assert _evaluations is not None  # set by _start_worker
    return _search(_evaluations, block)


def _search(evaluations: Evaluations, block: Block) -> tuple[int, list[Hit]]:
    texts = texts_in(block)
    return len(texts), evaluations.hits(texts)


class _Pool:
    """Searches blocks in other processes, in order, with few blocks held at once."""

    def __init__(self, evaluations: Evaluations, workers: int) -> None:
        self._evaluations, self._workers = evaluations, workers
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        if self._workers > 1:  # spawned: a fork would copy whatever threads hold locked
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._evaluations,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def search(self, pieces: Iterator[Block]) -> Iterator[tuple[int, list[Hit]]]:
        if self._executor is None:
            yield from (_search(self._evaluations, block) for block in pieces)
            return
        running: collections.deque[concurrent.futures.Future[tuple[int, list[Hit]]]] = collections.deque()
        for block in pieces:
            running.append(self._executor.submit(_search_block, block))
            if len(running) > 2 * self._workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def clean(
    options: Decontamination, parts: Sequence[Rows[T]], turns: Callable[[T], Sequence[Mapping[str, str]]]
) -> list[Rows[T]]:
    """What is left of training sources after `data.decontaminate`; each keeps its reports in `contamination`.

    Raises DataError when `action` is "refuse" and a source is contaminated, or when nothing is left.
    """
    evaluations = Evaluations(options.against, options)
    cleaned: list[Rows[T]] = []
    refused: list[PairReport] = []
    for rows in parts:
        findings = Findings(evaluations, rows.counts.path)
        numbered = iter(rows)
        while piece := list(itertools.islice(numbered, TEXTS_AT_ONCE)):
            texts = [
                Text(
                    place=rows.place(findings.rows + n),
                    turns=tuple(turn["content"] for turn in turns(row) if turn["role"] == "user"),
                )
                for n, row in enumerate(piece)
            ]
            findings.add(len(piece), evaluations.hits(texts))
        reports = findings.reports()
        contaminated = [report for report in reports if report.contaminated]
        refused += contaminated
        removed = set(findings.matching) if options.action == "remove rows" else set()
        if options.action == "remove set" and contaminated:
            removed = set(range(len(rows)))
        kept = np.array([n for n in range(len(rows)) if n not in removed], dtype=np.int64)
        left = rows.select(kept, contaminated=len(removed))
        left.contamination = tuple(reports)
        cleaned.append(left)
    if refused and options.action == "refuse":
        _refuse(refused)
    if not any(map(len, cleaned)):
        raise DataError("every training row was removed by data.decontaminate: " + _heads(cleaned))
    return cleaned


def _heads(parts: Sequence[Rows[Any]]) -> str:
    return "; ".join(report.lines(0)[0] for rows in parts for report in rows.contamination if report.overlaps)


def _refuse(reports: Sequence[PairReport]) -> None:
    lines = [line for report in reports for line in report.lines(MOST_SHOWN)]
    raise DataError(
        "training data holds prompts of evaluation sets. Remove them "
        '(data.decontaminate.action = "remove rows" or "remove set"), or leave out the set:\n  ' + "\n  ".join(lines)
    )
