"""A bench's result as CSV for programs and as Markdown for people."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence

from oche.bench.result import BenchResult, Row
from oche.bench.stats import Interval
from oche.genotype import Genotype
from oche.report.page import duration

COLUMNS = (
    "space", "data", "budget", "metric", "method", "seeds", "mean", "std", "best", "low", "high", "picked", "rank", "regret",
    "improvement", "improvement_low", "improvement_high", "t_test", "t_p", "rank_test", "rank_p", "seconds", "train_seconds",
    "memory_mib", "device",
)  # fmt: skip
HEADINGS = ("method", "seeds", "mean ± std", "95 % interval", "best", "picked", "rank", "regret", "RI %", "p", "search")


def to_csv(result: BenchResult) -> str:
    """Every row with every number, unrounded; empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in result.rows:
        s, test = r.summary, r.significance
        tests = (test.t_name, test.t_p, test.rank_name, test.rank_p) if test else (None,) * 4
        writer.writerow(
            (
                r.space, r.data, r.budget, r.metric, r.method, s.n, s.mean, s.std, s.best, *(s.interval or (None, None)), r.picked,
                r.rank, r.regret, r.improvement, *(r.improvement_interval or (None, None)), *tests, r.seconds, r.train_seconds,
                r.memory_mib, r.device,
            )
        )  # fmt: skip
    return file.getvalue()


def to_markdown(result: BenchResult) -> str:
    """Notes, a table for each place and metric, every trial, and what the columns mean."""
    lines = [f"# {result.matrix.name}", "", *(f"- {note}" for note in result.notes), ""]
    for title, rows in tables(result):
        lines += [f"## {title}", "", *_table(HEADINGS, [cells(row) for row in rows]), ""]
    headings, body = trial_table(result)
    lines += ["## Every trial", "", *_table(headings, body), "", *(f"- {line}" for line in legend(result)), ""]
    return "\n".join(lines)


def tables(result: BenchResult) -> list[tuple[str, list[Row]]]:
    """(title, rows) for each place and metric that has any."""

    def place(row: Row) -> tuple[str, str, str, str]:
        return row.metric, row.space, row.data, row.budget

    groups = [(key, list(rows)) for key, rows in itertools.groupby(result.rows, place)]
    return [
        (f"{metric}: {space}, searched on {data}, {budget}", rows) for (metric, space, data, budget), rows in groups
    ]


def cells(row: Row) -> list[str]:
    """A row as text, under HEADINGS."""
    s, test = row.summary, row.significance
    return [
        row.method,
        str(s.n) if s.n else "",
        f"{s.mean:.2f}" + (f" ± {s.std:.2f}" if s.std is not None else ""),
        _interval(s.interval, ".2f"),
        f"{s.best:.2f}" if s.n else "",
        _number(row.picked, ".2f"),
        _number(row.rank, "d"),
        _number(row.regret, ".2f"),
        f"{_number(row.improvement, '+.2f')} {_interval(row.improvement_interval, '+.2f')}".strip(),
        f"{test.t_p:.3f} / {test.rank_p:.3f} ({test.t_name} / {test.rank_name})" if test else "",
        f"{duration(row.seconds)} ({row.device})" if row.seconds is not None else "",
    ]


def trial_table(result: BenchResult) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of all trials, each with its values and its cell in words."""
    metrics = tuple(dict.fromkeys((*result.matrix.reported, *result.matrix.looked_up)))
    places = sum(1 for _ in result.places())
    rows = [
        [
            trial.method if places == 1 else trial.name,
            str(trial.seed),
            *(_number(trial.values.get(metric), ".2f") for metric in metrics),
            duration(trial.seconds),
            Genotype.parse(trial.genotype, trial.space).summary(),
        ]
        for trial in sorted(result.finished, key=lambda t: result.matrix.searched.index(t.method))
    ]
    return ["method" if places == 1 else "trial", "seed", *metrics, "search", "cell"], rows


def legend(result: BenchResult) -> list[str]:
    """What the columns mean."""
    return [
        "interval: of the mean, by bootstrap (BCa, 9,999 resamples, seeded)",
        f"picked: the value of the seed that is best by {result.matrix.selector}",
        "regret: the table's optimum less the mean",
        f"RI: relative improvement over {result.matrix.baseline}, 100 (mean - its mean) / its mean, with a percentile bootstrap interval",
        f"p: two-sided, against {result.matrix.baseline}; paired tests where both have the same seeds",
        "search: the median time of a search on one device",
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(headings), _line(["---"] * len(headings)), *map(_line, rows)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(ends: Interval | None, form: str) -> str:
    return "" if ends is None else f"[{ends[0]:{form}}, {ends[1]:{form}}]"
