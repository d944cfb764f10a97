"""A study's tables, from the bench's finished trials: mean, standard deviation and 95 % interval over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from oche.bench import stats
from oche.bench.matrix import TRAINED_TEST, TRAINED_VAL
from oche.bench.render import NOT_RUN, Sheet
from oche.bench.result import BenchResult, Finished
from oche.study import degeneration
from oche.study.decode import graded
from oche.study.measure import ANEW, CONTINUOUS, RAW, USUAL

Number = Callable[[Finished], float | None]


def sheets(result: BenchResult) -> list[Sheet]:
    """All tables that there are numbers for."""
    found = []
    for place, here in result.places():
        where = ", ".join(place)
        arms = {arm: [t for t in here if t.method == arm] for arm in result.matrix.searched}
        run = {arm: trials for arm, trials in arms.items() if trials}
        found += [overview(where, arms, result.matrix.looked_up)]
        found += [discretisation(where, arm, trials) for arm, trials in run.items() if decodings(trials)]
        found += [sheet for sheet in (spread(where, run), degenerating(where, run)) if sheet[2]]
    return found


def overview(where: str, arms: dict[str, list[Finished]], looked_up: Sequence[str] = ()) -> Sheet:
    """Each arm's networks: the continuous one, decoded ones as they are, the one that the arm ends with; what a table says of its cell."""
    headings = [
        "arm", "seeds", "entropy %", "continuous", "error of op", "error of op+edge@0.50", "error of op+best2",
        "decoded (op+best2)", "final, validation", "final, test", "final, M multiply-adds", "search s",
        "training s", *(f"derived cell, {metric}" for metric in looked_up),
    ]  # fmt: skip
    rows = []
    for arm, trials in arms.items():
        errors = (error(f"{name}/{ANEW}") for name in ("op", "op+edge@0.50", "op+best2"))
        numbers: list[Number] = [
            value("entropy"), value(f"{CONTINUOUS}/{ANEW}"), *errors, value(f"op+best2/{ANEW}"), value(TRAINED_VAL),
            value(TRAINED_TEST),
        ]  # fmt: skip
        costs: list[Number] = [lambda t: t.multiply_adds / 1e6, lambda t: t.seconds, lambda t: t.train_seconds]
        cells = [*(told(trials, number) for number in numbers), *(told(trials, c, interval=False) for c in costs)]
        cells += [told(trials, value(metric)) for metric in looked_up]
        rows.append([arm, str(len(trials)) if trials else NOT_RUN, *cells])
    return f"Arms, in percent, statistics re-estimated: {where}", *filled(headings, rows)


def discretisation(where: str, arm: str, trials: Sequence[Finished]) -> Sheet:
    """An arm's decodings: score and error (continuous less decoded) with each kind of statistics, and scores after fine-tuning."""
    tuned = sorted({k.rpartition("/")[2] for t in trials for k in t.values if "/tuned " in k}, key=lambda k: int(k[6:]))
    headings = ["decoding", "seeds", RAW, f"error, {RAW}", ANEW, f"error, {ANEW}", *tuned]
    rows = []
    for name in decodings(trials):
        keys = [f"{name}/{statistics}" for statistics in (RAW, ANEW)]
        pairs = [told(trials, number) for key in keys for number in (value(key), error(key))]
        seeds = sum(keys[0] in t.values for t in trials)
        rows.append([name, str(seeds), *pairs, *(told(trials, value(f"{name}/{k}")) for k in tuned)])
    return f"Discretisation of {arm}, in percent: {where}", headings, rows


def spread(where: str, arms: dict[str, list[Finished]]) -> Sheet:
    """Deciles of the largest weight of each edge's operations, and of the gates, means over seeds."""
    rows = []
    for arm, trials in arms.items():
        for kind in ("max op", "gate"):
            cells = [told(trials, value(f"{kind}/{10 * k}"), interval=False) for k in range(11)]
            if any(cells):
                rows.append([arm, kind, *cells])
    headings = ["arm", "of", *(f"{10 * k} %" for k in range(11))]
    return f"How decided: deciles over edges, in percent: {where}", headings, rows


def degenerating(where: str, arms: dict[str, list[Finished]]) -> Sheet:
    """The numbers of degeneration after the last epoch, and how many seeds end degenerated, or were so after any epoch."""
    forms = {
        degeneration.FREE_SHARE: "{:.2f}", degeneration.GATES: "{:.2f}", degeneration.DEPTH: "{:.1f}", degeneration.STRIDES: "{:.1f}",
        degeneration.PARAMETERS: "{:,.0f}", degeneration.MACS: "{:,.0f}", degeneration.GAP: "{:.3f}",
    }  # fmt: skip
    rows = []
    for arm, trials in arms.items():
        measured = [t for t in trials if t.probe(degeneration.FREE_SHARE)]
        if measured:
            cells = [told(measured, last(name), form) for name, form in forms.items()]
            flags = [degenerated(t) for t in measured]
            ends, ever = sum(f[-1] for f in flags), sum(any(f[1:]) for f in flags)
            rows.append([arm, str(len(measured)), *cells, f"{ends} / {ever} of {len(measured)}"])
    headings = ["arm", "seeds", *forms, "degenerated: at the end / ever"]
    return f"Degeneration, after the last epoch: {where}", *filled(headings, rows)


def filled(headings: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Drops the columns that are empty in every row: a cell space has no gates, for example."""
    kept = [n for n in range(len(headings)) if not rows or any(row[n] for row in rows)]
    return [headings[n] for n in kept], [[row[n] for n in kept] for row in rows]


# ------------------------------------------------------------------ numbers of a trial


def value(key: str) -> Number:
    """A measured value, None where there is none."""
    return lambda trial: trial.values.get(key)


def error(key: str) -> Number:
    """The error of a decoded network: the continuous one's score, with statistics of its own, less the decoded one's."""

    def number(trial: Finished) -> float | None:
        whole, own = trial.values.get(f"{CONTINUOUS}/{ANEW}"), trial.values.get(key)
        return None if whole is None or own is None else whole - own

    return number


def last(key: str) -> Number:
    """A number as it was after the last epoch."""

    def number(trial: Finished) -> float | None:
        series = trial.probe(key)
        return series[max(series)] if series else None

    return number


def degenerated(trial: Finished) -> list[bool]:
    """True for each epoch after which the trial is degenerated; the first entry is before the first epoch."""
    free, weights = trial.probe(degeneration.FREE_SHARE), trial.probe(degeneration.PARAMETERS)
    usual = trial.values.get(USUAL) or 0.0
    return [degeneration.degenerated(free[epoch], weights[epoch], usual) for epoch in sorted(free)]


def decodings(trials: Sequence[Finished]) -> list[str]:
    """The decodings that any trial has a score of, in the order of measurement; within a family by threshold or share."""
    names = list(dict.fromkeys(key.rpartition("/")[0] for t in trials for key in t.values if key.endswith(f"/{RAW}")))
    grades = {name: graded(name) or (name, 0.0) for name in names}
    families = list(dict.fromkeys(family for family, _ in grades.values()))
    return sorted(names, key=lambda name: (families.index(grades[name][0]), grades[name][1]))


def numbers(trials: Sequence[Finished], number: Number) -> Iterator[float]:
    """The number of each trial that has it."""
    for trial in trials:
        if (found := number(trial)) is not None:
            yield found


def told(trials: Sequence[Finished], number: Number, form: str = "{:.2f}", *, interval: bool = True) -> str:
    """Mean ± standard deviation [95 % interval] of a number over trials, as far as there are enough; empty where there is none."""
    values = list(numbers(trials, number))
    if not values:
        return ""
    s = stats.summary(values)
    text = form.format(s.mean) + (f" ± {form.format(s.std)}" if s.std is not None else "")
    if not interval or s.interval is None:
        return text
    return f"{text} [{form.format(s.interval[0])}, {form.format(s.interval[1])}]"
