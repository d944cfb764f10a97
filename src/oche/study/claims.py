"""Whether the claims of "The devil is in discretization discrepancy" hold in a study's arms, by criteria for small data.

C1 to C7 paraphrase the paper's abstract (arXiv 2405.16610). The criteria are ours, written down before anything was run; sigma is always a
standard deviation over seeds, and where two arms are compared the root of the mean of their variances. What holds by them holds for this
data, this size and these seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from oche.bench.matrix import TRAINED_TEST
from oche.bench.render import Sheet
from oche.bench.result import BenchResult, Finished
from oche.study.degeneration import FREE_SHARE
from oche.study.measure import ANEW, CONTINUOUS
from oche.study.tables import Number, error, last, numbers, value

USUAL = ("op", "op+edge@0.50", "op+best2")
"""The decodings that C1 looks at."""

HOLDS, NOT, OPEN = "holds", "does not hold", "not judged"


@dataclass(frozen=True)
class Roles:
    """Which arm plays which part, "" for none.

    `single` is the unregularised single stage, `penalised` the one with the largest penalty, `two_stage` the control; `fixed` the split
    S0, `splits` the others.
    """

    single: str = ""
    penalised: str = ""
    two_stage: str = ""
    fixed: str = ""
    splits: tuple[str, ...] = ()


def judged(result: BenchResult, roles: Roles) -> list[Sheet]:
    """A table for each place: claim, criterion, numbers, verdict. A smoke test's is that there is none."""
    headings = ["claim", "criterion", "numbers", "by this criterion it"]
    found: list[Sheet] = []
    for place, here in result.places():
        arms = {arm: [t for t in here if t.method == arm] for arm in result.matrix.searched}
        rows = [list(row) for row in _rows(arms, roles)]
        if "smoke" in place:
            rows = [[*row[:3], f"{OPEN}: smoke"] for row in rows]
        if rows:
            found.append((f"Claims: {', '.join(place)}", headings, rows))
    return found


def _rows(arms: dict[str, list[Finished]], roles: Roles) -> Iterator[tuple[str, str, str, str]]:
    whole, test = value(f"{CONTINUOUS}/{ANEW}"), value(TRAINED_TEST)
    if base := arms.get(roles.single, []):
        yield _discretisation(base, whole)
    if base and (penalised := arms.get(roles.penalised, [])):
        names = "C2: an entropy penalty costs the supernet", "continuous score without it less that with it > 2 sigma"
        yield (*names, *_more(base, penalised, whole, 2))
    if base and (two := arms.get(roles.two_stage, [])):
        yield (
            "C3: one stage needs no decoding",
            "test score >= that of two stages, equal epochs",
            *_more(base, two, test, 0),
        )
        cost = [mean(t.seconds + t.train_seconds for t in trials) for trials in (base, two)]
        told = f"{cost[0]:.0f} s against {cost[1]:.0f} s of search and training"
        yield "C6: at no more cost", "seconds <= those of two stages", told, HOLDS if cost[0] <= cost[1] else NOT
    for name in roles.splits:
        if (fixed := arms.get(roles.fixed, [])) and (split := arms.get(name, [])):
            told, verdict = _more(split, fixed, test, 2)
            free = [list(numbers(trials, last(FREE_SHARE))) for trials in (split, fixed)]
            if all(free):
                told += f"; free share {mean(free[0]):.2f} against {mean(free[1]):.2f}"
                verdict = NOT if verdict == HOLDS and mean(free[0]) >= mean(free[1]) else verdict
            criterion = f"test score of {name} less that of {roles.fixed} > 2 sigma, with a lower share without weights"
            yield "C7: another split is better and keeps from degenerating", criterion, told, verdict


def _discretisation(base: Sequence[Finished], whole: Number) -> tuple[str, str, str, str]:
    """C1: the largest mean error of the usual decodings, statistics re-estimated, against the continuous score's spread."""
    claim, criterion = "C1: decoding an unregularised supernet costs", "error of a usual decoding > 3 sigma"
    scores = list(numbers(base, whole))
    errors = {name: list(numbers(base, error(f"{name}/{ANEW}"))) for name in USUAL}
    means = {name: mean(values) for name, values in errors.items() if values}
    if len(scores) < 2 or not means:
        return claim, criterion, ", ".join(f"{name} {m:.2f}" for name, m in means.items()), f"{OPEN}: too few seeds"
    sigma = stdev(scores)
    told = (
        ", ".join(f"{name} {m:.2f} ({len(errors[name])} seeds)" for name, m in means.items()) + f"; sigma {sigma:.2f}"
    )
    return claim, criterion, told, HOLDS if max(means.values()) > 3 * sigma else NOT


def _more(better: Sequence[Finished], worse: Sequence[Finished], number: Number, sigmas: float) -> tuple[str, str]:
    """Whether the mean of one is more than `sigmas` sigma above that of the other, at least as large where that is 0; the numbers."""
    mine, other = list(numbers(better, number)), list(numbers(worse, number))
    if min(len(mine), len(other)) < 2:
        return f"{len(mine)} and {len(other)} seeds", f"{OPEN}: too few seeds"
    sigma, difference = sqrt((stdev(mine) ** 2 + stdev(other) ** 2) / 2), mean(mine) - mean(other)
    holds = difference > sigmas * sigma if sigmas else difference >= 0
    told = f"{mean(mine):.2f} against {mean(other):.2f}: {difference:+.2f}; sigma {sigma:.2f}, {len(mine)} and {len(other)} seeds"
    return told, HOLDS if holds else NOT
