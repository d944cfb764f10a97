"""Renders a bench's result as tables of words, and as Markdown."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from oche.bench.baselines import RIVALS
from oche.bench.matrix import SUPERNET, SUPERNET_TRAIN, Matrix
from oche.bench.result import BenchResult, Finished, Place, Row, by_seed
from oche.bench.stats import FEWEST, Difference, Interval, all_pairs
from oche.bench.tables import LARGEST
from oche.genotype import Genotype
from oche.report.facts import duration
from oche.watch.probes import parameter_free

BESIDE = ("- largest", "- as large")
"""Columns beside every mean: the difference to the table's largest cell, and to random cells as large as those found."""
HEADINGS = ("95 % interval", "best", "picked", "rank", "regret", "RI %", "p", "that is", "search")
NOT_RUN = "not run"

Sheet = tuple[str, list[str], list[list[str]]]
"""Title, headings, rows."""


def to_markdown(result: BenchResult, notes: Sequence[str] = (), own: Sequence[Sheet] = ()) -> str:
    """Notes, all side by side, a table for each place and metric, what the searches chose, every trial, what the columns mean.

    `notes` and the tables `own` come before the bench's.
    """
    lines = [f"# {_literal(result.matrix.name)}", "", *(f"- {_literal(note)}" for note in (*notes, *result.notes)), ""]
    for title, headings, rows in [*own, *sheets(result), *pairs(result), *searches(result)]:
        lines += [f"## {_literal(title)}", "", *table_lines(headings, rows), ""]
    headings, body = trial_table(result)
    lines += ["## Every trial", "", *table_lines(headings, body), "", *(f"- {line}" for line in legend(result)), ""]
    return "\n".join(lines)


def sheets(result: BenchResult) -> list[Sheet]:
    """The overview, where there is more than one place or metric to see at once, then each of them."""
    several = sum(1 for _ in result.places()) * len(headline(result.matrix)) > 1
    return [*([overview(result)] if several else []), *tables(result)]


def overview(result: BenchResult) -> Sheet:
    """Methods against places and what papers report, side by side: mean ± std, interval, seeds, or that it was not run; best first.

    Below them are the choices without a search. In one place also the distances to these and RI by the first metric, each seed's skips,
    and the time of a search.
    """
    places = [place for place, _ in result.places()]
    metrics, alone = headline(result.matrix), len(places) == 1
    columns = list(itertools.product(places, metrics))
    found = {((r.space, r.data, r.budget), r.metric, r.method): r for r in result.rows}
    told = {method: [found.get((*column, method)) for column in columns] for method in result.matrix.searched}
    order = sorted(told, key=lambda method: -max((r.summary.mean for r in told[method][:1] if r), default=-math.inf))
    rows = []
    for method in order:
        first, count = told[method][0], max((r.summary.n for r in told[method] if r), default=0)
        mine = sorted((t for t in result.finished if t.method == method), key=lambda t: t.seed)
        rows.append(
            [
                result.called(method),
                *([_seeds(result, method, count)] if alone else []),
                *(_together(result, r, counted=not alone) if r else NOT_RUN for r in told[method]),
                *([*_beside(result, first), _improvement(first), skips_of(mine), _search(first)] if alone else []),
            ]
        )
    for name in dict.fromkeys(r.method for r in result.rows if r.fixed):
        values = [found.get((*column, name)) for column in columns]
        means = [_mean(r) if r else "" for r in values]
        more = [*_beside(result, values[0]), _improvement(values[0]), "", ""]
        rows.append([name, "", *means, *more] if alone else [name, *means])
    labels = [_label(place, metric, places, metrics) for place, metric in columns]
    headings = ["method", *(["seeds"] if alone else []), *labels]
    headings += [*_known(result), "RI %", "skips", "search"] if alone else []
    return "Side by side: mean ± std over seeds, [95 % interval]", headings, rows


def headline(matrix: Matrix) -> tuple[str, ...]:
    """The metrics that papers report, of those that the bench does: on test images, after the full training; else the first."""
    found = tuple(m for m in matrix.reported if "test" in m.split("/") and not m.endswith("/12"))
    return found or matrix.reported[:1]


def tables(result: BenchResult) -> list[Sheet]:
    """(title, headings, rows) for each place and metric: the methods by rank, then those not run, then the choices without a search."""
    found = []
    headings = ["method", "seeds", "mean ± std", *_known(result), *HEADINGS]
    for (space, data, budget), _ in result.places():
        for metric in result.matrix.reported:
            here = [r for r in result.rows if (r.space, r.data, r.budget, r.metric) == (space, data, budget, metric)]
            run = [r for r in here if not r.fixed]
            rows = [cells(result, r) for r in run]
            rows += [
                [result.called(method), _seeds(result, method, 0), NOT_RUN, *[""] * (len(headings) - 3)]
                for method in result.matrix.searched
                if method not in {r.method for r in run}
            ]
            rows += [cells(result, r) for r in here if r.fixed]
            found.append((f"{metric}: {space}, searched on {data}, {budget}", headings, rows))
    return found


def by_pair(result: BenchResult) -> Iterator[tuple[Place, str, dict[tuple[str, str], Difference]]]:
    """(place, metric, all pairs of methods, the better mean first) by the first headline metric."""
    metric = headline(result.matrix)[0]
    for place, here in result.places():
        found = by_seed(here, metric)
        order = sorted(found, key=lambda method: -mean(found[method].values()))
        yield place, metric, all_pairs({method: found[method] for method in order})


def pairs(result: BenchResult) -> list[Sheet]:
    """For each place the pairs of methods that are told apart after Holm's correction; how many were compared stands in the title."""
    sheets = []
    for place, metric, found in by_pair(result):
        tests = sum(d.t_p is not None for d in found.values())
        apart = [
            [
                f"{result.called(a)} − {result.called(b)}",
                str(d.n),
                f"{d.mean:+.2f}",
                _interval(d.interval, "+.2f"),
                p_values(d),
            ]
            for (a, b), d in found.items()
            if d.verdict in ("better", "worse")
        ]
        said = f"{len(apart)} of {tests} pairs told apart, Holm's correction over all of them"
        title = f"{metric}: {place[0]}, searched on {place[1]}, {place[2]}: {said}"
        if tests:
            sheets.append((title, ["pair", "seeds", "difference", "95 % interval", "p"], apart))
    return sheets


def searches(result: BenchResult) -> list[Sheet]:
    """The outcome of the searches in each place: the supernet's accuracies, and seed by seed skips, `none`, and the monitor's warning."""
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
                    result.called(method),
                    _seeds(result, method, len(mine)),
                    *(
                        _spread([v for t in mine if (v := t.values.get(key)) is not None])
                        for key in (SUPERNET_TRAIN, SUPERNET)
                    ),
                    skips_of(mine),
                    " ".join(str(cell.count("none")) for cell in chosen),
                    f"{100 * mean(map(parameter_free, chosen)):.0f}" if chosen else "",
                    f"{sum(bool(t.warning) for t in mine)} of {len(mine)}" if mine else "",
                ]
            )
        found.append((f"What was chosen, seed by seed: {space}, searched on {data}, {budget}", headings, rows))
    return found


def cells(result: BenchResult, row: Row) -> list[str]:
    """A row as text, under the headings of `tables`."""
    s, apart = row.summary, row.difference
    return [
        result.called(row.method),
        _seeds(result, row.method, s.n) if s.n else "",
        _mean(row),
        *_beside(result, row),
        _interval(s.interval, ".2f"),
        f"{s.best:.2f}" if s.n else "",
        _number(row.picked, ".2f"),
        _number(row.rank, "d"),
        _number(row.regret, ".2f"),
        _improvement(row),
        p_values(apart),
        apart.verdict if apart else "",
        _search(row),
    ]


def trial_table(result: BenchResult) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of all trials, each with its values, its cell in words and as a string; those that were not run say so."""
    metrics = tuple(dict.fromkeys((*result.matrix.reported, *result.matrix.looked_up)))
    places = sum(1 for _ in result.places())
    done = {trial.name: trial for trial in result.finished}
    rows = []
    for planned in sorted(result.planned, key=lambda t: result.matrix.searched.index(t.method)):
        first = [result.called(planned.method) if places == 1 else planned.name, str(planned.seed)]
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
    """Explanations of the columns."""
    baseline = result.called(result.matrix.baseline)
    return [
        f"interval: Student's, of the mean; none below {FEWEST} seeds, nor where all are equal; docs/bench.md",
        f"picked: the value of the seed that is best by {result.matrix.selector}",
        "- largest: the mean less what the table's cell with the most parameters has",
        f"- as large: each seed's value less that of the best by validation of {RIVALS} random cells with as many parameters, on average",
        "best of n random cells: by the metric that selects, mean ± deviation; n is 5, 10, 50 and the seeds and queries of methods",
        "regret: the table's optimum less the mean",
        f"RI: relative improvement over {baseline}, 100 (mean - its mean) / its mean, over the seeds both have",
        f"p: two-sided, against {baseline}, over the seeds both have: paired t, that with Holm's correction, Wilcoxon",
        f"that is: better or worse than {baseline} where the corrected p is below 0.05",
        "search: the median time of a search on one device, without what is measured beside it",
        "skips: of each seed's cell, normal+reduction where there are two; warned: searches in which the monitor saw a collapse",
    ]


def skips_of(trials: Sequence[Finished]) -> str:
    """Skip connections of each trial's cell."""
    return " ".join(_skips(Genotype.parse(t.genotype, t.space)) for t in trials) or NOT_RUN


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    return [_line(headings), _line(["---"] * len(headings)), *map(_line, rows)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_literal(text).replace("|", r"\|") for text in texts) + " |"


def _literal(text: str) -> str:
    """The text with what Markdown would pass on as HTML taken literally.

    >>> _literal("<b>, p < 0.001")
    '\\\\<b>, p < 0.001'
    """
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", text)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _mean(row: Row) -> str:
    return f"{row.summary.mean:.2f}" + (f" ± {row.summary.std:.2f}" if row.summary.std is not None else "")


def _known(result: BenchResult) -> tuple[str, ...]:
    """The headings of the columns beside a mean: none if no table gives the sizes of its cells."""
    return BESIDE if any(choice.name == LARGEST for choice in result.facts.fixed) else ()


def _beside(result: BenchResult, row: Row | None) -> list[str]:
    told = (row.over_largest, row.over_size) if row else (None, None)
    return [_number(value, "+.2f") for value in told[: len(_known(result))]]


def _together(result: BenchResult, row: Row, *, counted: bool) -> str:
    """Mean, spread and interval in one cell, and the seeds where they are `counted`."""
    seeds = f"({_seeds(result, row.method, row.summary.n)})" if counted else ""
    return " ".join(text for text in (_mean(row), _interval(row.summary.interval, ".2f"), seeds) if text)


def _improvement(row: Row | None) -> str:
    return f"{_number(row.improvement, '+.2f')} {_interval(row.improvement_interval, '+.2f')}".strip() if row else ""


def _search(row: Row | None) -> str:
    return f"{duration(row.seconds)} ({row.device})" if row and row.seconds is not None else ""


def _label(place: Place, metric: str, places: Sequence[Place], metrics: Sequence[str]) -> str:
    """A column's heading: the parts in which it differs from the others."""
    parts = [Path(place[i]).stem for i in range(3) if len({other[i] for other in places}) > 1]
    return ", ".join([*parts, *([metric] if len(metrics) > 1 or not parts else [])])


def p_values(difference: Difference | None) -> str:
    """The p-values of a difference: paired t, the same with Holm's correction where there is one, Wilcoxon."""
    found = (difference.t_p, difference.holm, difference.rank_p) if difference else ()
    return " / ".join(p_value(p) for p in found if p is not None)


def p_value(p: float) -> str:
    """A p-value in words.

    >>> p_value(0.0312), p_value(2e-9)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _seeds(result: BenchResult, method: str, count: int) -> str:
    """The number of a method's seeds, and of how many where some are missing."""
    asked = result.matrix.seeds_for(method)
    return str(count) if count == asked else f"{count} of {asked}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


def _skips(cell: Genotype) -> str:
    return "+".join(map(str, cell.skips().values()))


def _interval(ends: Interval | None, form: str) -> str:
    return "" if ends is None else f"[{ends[0]:{form}}, {ends[1]:{form}}]"
