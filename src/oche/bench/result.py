"""Reads a bench's files into its result: one row for each method and metric in each place of the matrix."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import ClassVar

from oche import config
from oche.bench import stats
from oche.bench.matrix import Matrix, flat
from oche.bench.planned import Planned, planned
from oche.bench.tables import LARGEST, Facts
from oche.bench.trial import BEST
from oche.errors import UserError
from oche.run import Run, records

Place = tuple[str, str, str]
"""A space, the data searched on, and a budget."""

FEW_RANDOM = (5, 10, 50)
"""Numbers of random cells of which every result tells the best."""

FEW = 6
"""Seeds below which Wilcoxon's test cannot fall under 0.05."""


@dataclass(frozen=True)
class BenchFolder(Run):
    """The folder of a bench: run.toml, the finished trials, what was taken from the table, the trials' run folders, the result.

    A study's folder also holds study.toml, which says what is measured.
    """

    TRIALS: ClassVar[str] = "trials.jsonl"
    FACTS: ClassVar[str] = "table.json"
    RUNS: ClassVar[str] = "trials"
    CSV: ClassVar[str] = "results.csv"
    PAIRS: ClassVar[str] = "pairs.csv"
    MARKDOWN: ClassVar[str] = "results.md"
    STUDY: ClassVar[str] = "study.toml"


@dataclass(frozen=True)
class Finished:
    """A line of trials.jsonl: the request, the cell, its values by metric, (epoch, skips, table's value) by epoch, and costs.

    `code` has the checksum of each file of the user's own that it used, by path; `version` is oche's. Earlier lines have neither.
    """

    name: str
    method: str
    space: str
    data: str
    budget: str
    seed: int
    asked: Mapping[str, object]
    genotype: str
    values: Mapping[str, float | None]
    curve: tuple[tuple[int, int, float | None], ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    memory_mib: float | None = None
    device: str = "cpu"
    parameters: int = 0
    multiply_adds: int = 0
    probes: Mapping[str, object] = field(default_factory=dict)
    warning: str = ""
    code: Mapping[str, object] = field(default_factory=dict)
    version: str = ""

    def probe(self, key: str) -> dict[int, float]:
        """Epoch -> value of a number that was measured beside the search. Raises UserError where the line holds something else."""
        pairs = self.probes.get(key, [])
        try:
            return {int(epoch): float(value) for epoch, value in pairs if value is not None}  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise UserError(f"{self.name}: the numbers of {key!r} are damaged in {BenchFolder.TRIALS}.") from None


@dataclass(frozen=True)
class Row:
    """A method in one place of the matrix by one metric. `fixed` choices have a mean and a regret only.

    `picked` is the value of the seed that `select` chose; `improvement` is RI over the baseline and `difference` that from it, both over
    the seeds that both have; `seconds` is the median of a search's.
    `over_largest` is the mean less what the table's largest cell has, `over_size` less the best of random cells as large as those found.
    """

    space: str
    data: str
    budget: str
    metric: str
    method: str
    fixed: bool
    summary: stats.Summary
    picked: float | None = None
    rank: int | None = None
    regret: float | None = None
    improvement: float | None = None
    improvement_interval: stats.Interval | None = None
    difference: stats.Difference | None = None
    seconds: float | None = None
    train_seconds: float | None = None
    memory_mib: float | None = None
    device: str = ""
    over_largest: float | None = None
    over_size: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """A bench as its files tell it: all trials in the matrix's order, those of them that are done and that are `missing`, and the rows.

    `names` are what methods and arms are called in tables and pictures, where that is not their own name.
    """

    folder: BenchFolder
    matrix: Matrix
    finished: tuple[Finished, ...]
    missing: tuple[str, ...]
    facts: Facts
    planned: tuple[Planned, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def called(self, method: str) -> str:
        """What a method is called in tables and pictures."""
        return self.names.get(method, method)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A row for each method and fixed choice, by place and metric."""
        m = self.matrix
        places = itertools.product(m.spaces, m.data, m.budgets, m.reported)
        return tuple(row for place in places for row in _rows(self, *place))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of the rows needs."""
        return tuple(_notes(self))

    def places(self) -> Iterator[tuple[Place, list[Finished]]]:
        """((space, data, budget), the trials there)."""
        m = self.matrix
        for place in itertools.product(m.spaces, m.data, m.budgets):
            yield place, [t for t in self.finished if (t.space, t.data, t.budget) == place]


def read(path: Path) -> BenchResult:
    """The result so far, from a bench's folder. Raises UserError if the folder holds no bench or is damaged."""
    folder = BenchFolder(Run.open(path).path)
    matrix, found = matrix_of(folder), finished(folder)
    places = tuple(planned(matrix))
    names = [place.name for place in places]
    facts = Facts.read(json.loads(folder.read(folder.FACTS))) if folder.has(folder.FACTS) else Facts()
    done = tuple(found[name] for name in names if name in found)
    return BenchResult(folder, matrix, done, tuple(name for name in names if name not in found), facts, places)


def matrix_of(folder: BenchFolder) -> Matrix:
    """The matrix in a bench's run.toml. Raises UserError where there is none."""
    where = str(folder.file(Run.CONFIG))
    table = config.loads(folder.read(Run.CONFIG).decode(), where).get("bench")
    if not isinstance(table, dict):
        raise UserError(f"{str(folder.path)!r} is no bench's folder: its run.toml has no [bench] table.")
    return config.build(Matrix, table, where)


def finished(folder: BenchFolder) -> dict[str, Finished]:
    """The trials that are done, by name. Raises UserError for a damaged line."""
    found: dict[str, Finished] = {}
    lines = folder.read(folder.TRIALS).splitlines() if folder.has(folder.TRIALS) else []
    for n, line in enumerate(lines, start=1):
        where = f"Line {n} of {folder.file(folder.TRIALS)}"
        record = records.unseal(line)
        if record is None:
            raise UserError(f"{where} is damaged; remove that line and start the bench again.")
        trial = config.build(Finished, record, where)
        found[trial.name] = trial
    return found


# ------------------------------------------------------------------ rows


def _rows(result: BenchResult, space: str, data: str, budget: str, metric: str) -> Iterator[Row]:
    here = [t for t in result.finished if (t.space, t.data, t.budget) == (space, data, budget)]
    of = by_seed(here, metric)
    summaries = {method: stats.summary(list(values.values())) for method, values in of.items()}
    order = stats.ranks({method: s.mean for method, s in summaries.items()}) if summaries else {}
    facts = result.facts
    optimum = facts.optimum.get(metric)
    fixed = {choice.name: choice.values.get(metric) for choice in facts.fixed}
    largest = fixed.get(LARGEST)
    base = of.get(result.matrix.baseline, {})
    differences = stats.against(of, result.matrix.baseline)
    for method in sorted(order, key=lambda name: order[name]):
        mine, of_method = of[method], [t for t in here if t.method == method]
        both = mine.keys() & base.keys() if method in differences else ()
        yield Row(
            space, data, budget, metric, method, False, summaries[method],
            picked=_picked(of_method, result.matrix.selector, metric),
            rank=order[method],
            regret=None if optimum is None else optimum - summaries[method].mean,
            improvement=stats.relative_improvement(_mean(mine, both), _mean(base, both)) if both else None,
            improvement_interval=stats.improvement_interval(mine, base) if both else None,
            difference=differences.get(method),
            seconds=median(t.seconds for t in of_method),
            train_seconds=median(t.train_seconds for t in of_method),
            memory_mib=max((t.memory_mib for t in of_method if t.memory_mib is not None), default=None),
            device=", ".join(sorted({t.device for t in of_method})),
            over_largest=None if largest is None else summaries[method].mean - largest,
            over_size=_over_size(facts, of_method, metric),
        )  # fmt: skip
    choices: dict[str, Sequence[float | None]] = {name: (value, None) for name, value in fixed.items()}
    random = facts.best_of.get(metric, ())
    choices |= {f"best of {n} random cells": random[n - 1] for n in _queries(here) if 1 < n <= len(random)}
    choices |= {"mean of the table": (facts.mean.get(metric), None), "optimum of the table": (optimum, None)}
    for name, (value, spread) in choices.items():
        if value is not None:
            alone = stats.Summary(0, value, spread, value, None)
            regret = None if optimum is None else optimum - value
            improvement = stats.relative_improvement(value, _mean(base, base)) if base else None
            over = None if largest is None else value - largest
            yield Row(
                space,
                data,
                budget,
                metric,
                name,
                True,
                alone,
                regret=regret,
                improvement=improvement,
                over_largest=over,
            )


def by_seed(here: Sequence[Finished], metric: str) -> dict[str, dict[int, float]]:
    """{method: {seed: value}} of the trials that have a value."""
    found: dict[str, dict[int, float]] = {}
    for trial in here:
        if (value := trial.values.get(metric)) is not None:
            found.setdefault(trial.method, {})[trial.seed] = value
    return found


def _queries(here: Sequence[Finished]) -> list[int]:
    """Numbers of random cells that get a row: a few fixed ones, as many as a method has seeds, and as many as a search asked for."""
    seeds = {method: {t.seed for t in here if t.method == method} for method in {t.method for t in here}}
    asked = {round(max(t.probe(BEST))) for t in here if t.probes.get(BEST)}
    return sorted({*FEW_RANDOM, *(len(found) for found in seeds.values()), *asked})


def _over_size(facts: Facts, of_method: Sequence[Finished], metric: str) -> float | None:
    """The mean over seeds of a cell's value less that of the best of random cells with as many parameters."""
    over = []
    for trial in of_method:
        value, rival = trial.values.get(metric), facts.as_large(trial.values.get(facts.size), metric)
        if value is not None and rival is not None:
            over.append(value - rival)
    return sum(over) / len(over) if over else None


def _mean(values: Mapping[int, float], seeds: Collection[int]) -> float:
    return sum(values[seed] for seed in seeds) / len(seeds)


def _picked(of_method: Sequence[Finished], select: str, metric: str) -> float | None:
    """The value by `metric` of the seed that is best by `select`: the first of equals."""
    scored = [(value, trial) for trial in of_method if (value := trial.values.get(select)) is not None]
    return max(scored, key=lambda pair: pair[0])[1].values.get(metric) if scored else None


# ------------------------------------------------------------------ notes


def budgets_said(matrix: Matrix) -> Iterator[str]:
    """Sentences about arms that search for other epochs, or whose networks train otherwise, than those beside them."""
    epochs = {
        name: count for name in matrix.searched if (count := matrix.arm(name).epochs) not in (None, matrix.epochs)
    }
    if epochs:
        told = ", ".join(f"{name} for {count}" for name, count in epochs.items())
        yield f"Budgets: not all search for as many epochs: {told}, the others for {matrix.epochs or 'those of their budget'}."
    train = {name: _own_training(matrix, name) for name in matrix.searched} if matrix.evaluate != "table" else {}
    usual = {path: value for path, value in matrix.settings.items() if path.startswith("train.")}
    if others := {name: own for name, own in train.items() if {**usual, **own} != usual}:
        told = "; ".join(f"{name} with {', '.join(f'{k}={v}' for k, v in own.items())}" for name, own in others.items())
        yield f"Budgets: not all networks train alike, so their scores compare that, too: {told}."


def _own_training(matrix: Matrix, name: str) -> dict[str, object]:
    """A method's or arm's own settings of the training."""
    own = {**flat(matrix.arm(name).settings), **flat(matrix.settings_of.get(name, {}))}
    return {path: value for path, value in own.items() if path.startswith("train.")}


def _notes(result: BenchResult) -> Iterator[str]:
    matrix = result.matrix
    yield from budgets_said(matrix)
    if "smoke" in matrix.budgets:
        yield "The budget smoke is there to see that everything runs: its numbers mean nothing and back no claim."
    yield f"Selected by {matrix.selector} (the picked seed, and the oracle); no test metric selects anything."
    for data in matrix.data:
        if others := [metric for metric in matrix.metrics if not _same_data(data, metric)]:
            yield (
                f"Searched on {data}, but {', '.join(others)} are looked up in a table of other data: the search never saw those images."
            )
    methods = {t.method for t in result.finished}
    fewest = min((len({t.seed for t in result.finished if t.method == method}) for method in methods), default=0)
    if 0 < fewest < FEW:
        yield (
            f"{fewest} seed{'s' * (fewest > 1)} cannot tell small differences from chance: a Wilcoxon p-value cannot fall below "
            f"{2.0 ** (1 - fewest):.3g}"
            + (f", and there is no interval below {stats.FEWEST}." if fewest < stats.FEWEST else ".")
        )
    if result.missing:
        total = len(result.missing) + len(result.finished)
        yield f"Unfinished: {len(result.missing)} of {total} trials are missing; the same command runs them."
    yield from (f"{name} failed: {reason}" for name, reason in result.failures.items())


def _same_data(data: str, metric: str) -> bool:
    """True if a metric such as `cifar10/test` is, by its name, one of this data."""
    name, own = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (Path(data).stem, metric.partition("/")[0]))
    return bool(own) and own in name
