"""A bench's result as CSV for programs and as Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from oche.bench.matrix import SUPERNET, SUPERNET_TRAIN
from oche.bench.result import BenchResult, Row
from oche.bench.stats import Interval
from oche.genotype import Genotype
from oche.probes import parameter_free
from oche.report.page import duration

COLUMNS = (
    "space", "data", "budget", "metric", "method", "seeds", "mean", "std", "best", "low", "high", "picked", "rank", "regret",
    "improvement", "improvement_low", "improvement_high", "t_test", "t_p", "rank_test", "rank_p", "seconds", "train_seconds",
    "memory_mib", "device",
)  # fmt: skip
HEADINGS = ("method", "seeds", "mean ± std", "95 % interval", "best", "picked", "rank", "regret", "RI %", "p", "search")
NOT_RUN = "not run"

Sheet = tuple[str, list[str], list[list[str]]]
"""Title, headings, rows."""


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


def to_markdown(result: BenchResult, notes: Sequence[str] = (), sheets: Sequence[Sheet] = ()) -> str:
    """Notes, the grid of places, a table for each place and metric, what the searches chose, every trial, what the columns mean.

    `notes` and `sheets` come before the bench's own.
    """
    lines = [f"# {result.matrix.name}", "", *(f"- {note}" for note in (*notes, *result.notes)), ""]
    for title, headings, rows in [*sheets, *grids(result), *tables(result), *searches(result)]:
        lines += [f"## {title}", "", *table_lines(headings, rows), ""]
    headings, body = trial_table(result)
    lines += ["## Every trial", "", *table_lines(headings, body), "", *(f"- {line}" for line in legend(result)), ""]
    return "\n".join(lines)


def grids(result: BenchResult) -> list[Sheet]:
    """Methods against places by the first metric, where there are several places: mean, spread and seeds, or that it was not run."""
    places = [place for place, _ in result.places()]
    if len(places) < 2:
        return []
    metric = result.matrix.reported[0]
    found = {(r.method, (r.space, r.data, r.budget)): r for r in result.rows if r.metric == metric and not r.fixed}
    differing = [i for i in range(3) if len({place[i] for place in places}) > 1]
    headings = ["method", *(", ".join(Path(place[i]).stem for i in differing) for place in places)]
    rows = []
    for method in result.matrix.searched:
        mine = [found.get((method, place)) for place in places]
        rows.append([method, *(f"{_mean(r)} ({_seeds(result, r.summary.n)})" if r else NOT_RUN for r in mine)])
    return [(f"{metric}: mean ± std over seeds", headings, rows)]


def tables(result: BenchResult) -> list[Sheet]:
    """(title, headings, rows) for each place and metric: the methods by rank, then those not run, then the choices without a search."""
    found = []
    for (space, data, budget), _ in result.places():
        for metric in result.matrix.reported:
            here = [r for r in result.rows if (r.space, r.data, r.budget, r.metric) == (space, data, budget, metric)]
            run = [r for r in here if not r.fixed]
            rows = [cells(result, r) for r in run]
            rows += [
                [method, _seeds(result, 0), NOT_RUN, *[""] * (len(HEADINGS) - 3)]
                for method in result.matrix.searched
                if method not in {r.method for r in run}
            ]
            rows += [cells(result, r) for r in here if r.fixed]
            found.append((f"{metric}: {space}, searched on {data}, {budget}", list(HEADINGS), rows))
    return found


def searches(result: BenchResult) -> list[Sheet]:
    """What the searches of each place came to: the supernet's accuracies, and seed by seed skips, `none`, and the monitor's word."""
    headings = [
        "method",
        "seeds",
        "supernet, train %",
        "supernet, validation %",
        "skips",
        "none",
        "without weights %",
        "warned",
    ]
    found = []
    for (space, data, budget), here in result.places():
        rows = []
        for method in result.matrix.searched:
            mine = sorted((t for t in here if t.method == method), key=lambda t: t.seed)
            chosen = [Genotype.parse(t.genotype, t.space) for t in mine]
            rows.append(
                [
                    method,
                    _seeds(result, len(mine)),
                    *(
                        _spread([v for t in mine if (v := t.values.get(key)) is not None])
                        for key in (SUPERNET_TRAIN, SUPERNET)
                    ),
                    " ".join(_skips(cell) for cell in chosen) or NOT_RUN,
                    " ".join(str(cell.count("none")) for cell in chosen),
                    f"{100 * mean(map(parameter_free, chosen)):.0f}" if chosen else "",
                    f"{sum(bool(t.warning) for t in mine)} of {len(mine)}" if mine else "",
                ]
            )
        found.append((f"What was chosen, seed by seed: {space}, searched on {data}, {budget}", headings, rows))
    return found


def cells(result: BenchResult, row: Row) -> list[str]:
    """A row as text, under HEADINGS."""
    s, test = row.summary, row.significance
    return [
        row.method,
        _seeds(result, s.n) if s.n else "",
        _mean(row),
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
    """(headings, rows) of all trials, each with its values, its cell in words and as a string; those that were not run say so."""
    metrics = tuple(dict.fromkeys((*result.matrix.reported, *result.matrix.looked_up)))
    places = sum(1 for _ in result.places())
    done = {trial.name: trial for trial in result.finished}
    rows = []
    for planned in sorted(result.planned, key=lambda t: result.matrix.searched.index(t.method)):
        first = [planned.method if places == 1 else planned.name, str(planned.seed)]
        if (trial := done.get(planned.name)) is None:
            said = f"failed: {result.failures[planned.name]}" if planned.name in result.failures else NOT_RUN
            rows.append([*first, *[""] * (len(metrics) + 2), said, ""])
            continue
        cell = Genotype.parse(trial.genotype, trial.space)
        values = (_number(trial.values.get(metric), ".2f") for metric in metrics)
        rows.append([*first, *values, duration(trial.seconds), _skips(cell), cell.summary(), trial.genotype])
    names = ["method" if places == 1 else "trial", "seed"]
    return [*names, *metrics, "search", "skips", "cell", "genotype"], rows


def legend(result: BenchResult) -> list[str]:
    """What the columns mean."""
    return [
        "interval: of the mean, by bootstrap (BCa, 9,999 resamples, seeded)",
        f"picked: the value of the seed that is best by {result.matrix.selector}",
        "regret: the table's optimum less the mean",
        f"RI: relative improvement over {result.matrix.baseline}, 100 (mean - its mean) / its mean, with a percentile bootstrap interval",
        f"p: two-sided, against {result.matrix.baseline}; paired tests where both have the same seeds",
        "search: the median time of a search on one device, without what is measured beside it",
        "skips: of each seed's cell, normal+reduction where there are two; warned: searches in which the monitor saw a collapse",
    ]


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    return [_line(headings), _line(["---"] * len(headings)), *map(_line, rows)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _mean(row: Row) -> str:
    return f"{row.summary.mean:.2f}" + (f" ± {row.summary.std:.2f}" if row.summary.std is not None else "")


def _seeds(result: BenchResult, count: int) -> str:
    """How many seeds there are, and of how many, where some are missing."""
    return str(count) if count == result.matrix.seeds else f"{count} of {result.matrix.seeds}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


def _skips(cell: Genotype) -> str:
    return "+".join(map(str, cell.skips().values()))


def _interval(ends: Interval | None, form: str) -> str:
    return "" if ends is None else f"[{ends[0]:{form}}, {ends[1]:{form}}]"
