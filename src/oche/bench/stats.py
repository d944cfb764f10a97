"""The statistics of a bench, on plain sequences of numbers: an interval, an improvement, tests. Nothing here knows what was measured.

One rule says that a method is better: Student's test of the differences seed by seed, p < 0.05 after Holm's correction where several are
compared at once. For one comparison that is the same as an interval that leaves out 0. `tests/unit/bench/test_stats.py` counts how often
the intervals hold: for normal values as often as they say from three seeds on, for skewed and two-humped ones less.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from oche.report import claims

LEVEL = 0.95
FEWEST = claims.FEWEST

Interval = tuple[float, float]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Summary:
    """Summary of n numbers: mean, standard deviation (n - 1), largest, and the mean's interval; None where n is too small."""

    n: int
    mean: float
    std: float | None
    best: float
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """A method less another one over the n seeds that both have, in points.

    `t_p` and `rank_p` are the two-sided p-values of "no difference" by Student's paired test and by Wilcoxon's signed ranks, `holm` the
    first corrected for the number of comparisons made at once. All are None below three seeds; the interval also where all seeds differ
    by the same.
    """

    n: int
    mean: float
    interval: Interval | None = None
    t_p: float | None = None
    rank_p: float | None = None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """What the difference says, by the one rule."""
        p = self.t_p if self.holm is None else self.holm
        if p is None:
            return f"no verdict: fewer than {FEWEST} seeds"
        return "not told apart" if p >= 1 - LEVEL else "better" if self.mean > 0 else "worse"


def summary(values: Sequence[float]) -> Summary:
    """The summary of at least one number.

    >>> summary([1.0, 2.0, 3.0]).std
    1.0
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(np.mean(values)), spread, max(values), mean_interval(values))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean; None of fewer than three numbers, and of equal ones, which tell nothing of chance."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < FEWEST or np.ptp(numbers) <= 1e-12 * np.abs(numbers).max():
        return None
    half = special.stdtrit(len(numbers) - 1, (1 + LEVEL) / 2) * numbers.std(ddof=1) / np.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)


def relative_improvement(method: float, baseline: float) -> float | None:
    """RI = 100 (Acc_m - Acc_r) / Acc_r in percent, of means under one protocol (Yang et al., ICLR 2020, arXiv 1912.12522).

    None over a baseline that is not positive (F1 or R2 may be 0 or less), where a ratio says nothing.

    >>> relative_improvement(97.23, 96.92), relative_improvement(-7.2, -10.1)
    (0.31985142385472787, None)
    """
    return 100 * (method - baseline) / baseline if baseline > 0 else None


def improvement_interval(method: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """RI's 95 % interval over the seeds that both have: the ratio of means linearised (delta method), with Student's quantile.

    None where `mean_interval` or `relative_improvement` has none.
    """
    m, r = _shared(method, baseline)
    if len(m) < FEWEST or (centre := relative_improvement(m.mean(), r.mean())) is None:
        return None
    ratio = m.mean() / r.mean()
    around = mean_interval((100 * (m - ratio * r) / r.mean()).tolist())
    if around is None:
        return None
    return centre + around[0], centre + around[1]


def difference(method: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Compares two methods, given as {seed: value}, over the seeds that both have; None where they share none.

    Where all seeds differ by the same, Student's test has nothing to divide by: then its p-value is that of their signs, 2^(1 - n).
    """
    m, r = _shared(method, other)
    if not len(m):
        return None
    gaps = m - r
    if len(gaps) < FEWEST:
        return Difference(len(gaps), float(gaps.mean()))
    interval = mean_interval(gaps.tolist())
    if not gaps.any():
        return Difference(len(gaps), 0.0, interval, 1.0, 1.0)
    t_p = 2.0 ** (1 - len(gaps)) if interval is None else float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return Difference(len(gaps), float(gaps.mean()), interval, t_p, float(stats.wilcoxon(gaps).pvalue))


def against(values: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, Difference]:
    """Each other method less the baseline, corrected for their number; without those that share no seed with it."""
    base = values.get(baseline, {})
    others = {name: difference(of, base) for name, of in values.items() if name != baseline}
    return _corrected({name: found for name, found in others.items() if found})


def all_pairs(values: Mapping[str, Mapping[int, float]]) -> dict[tuple[str, str], Difference]:
    """Each method less each that comes after it, corrected for the number of pairs; without those that share no seed."""
    pairs = {(a, b): difference(values[a], values[b]) for a, b in itertools.combinations(values, 2)}
    return _corrected({pair: found for pair, found in pairs.items() if found})


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of one false "different" among all stays below the level (Holm 1979).

    >>> [round(q, 6) for q in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected


def ranks(means: Mapping[str, float]) -> dict[str, int]:
    """1 for the largest; equal ones share the better rank.

    >>> ranks({"a": 90.0, "b": 94.0, "c": 90.0})
    {'a': 2, 'b': 1, 'c': 2}
    """
    order = stats.rankdata([-mean for mean in means.values()], method="min")
    return {name: int(rank) for name, rank in zip(means, order, strict=True)}


def mean_ranks(values: Mapping[str, Mapping[int, float]]) -> tuple[dict[str, float], float, int] | None:
    """Mean rank of each method over the seeds that all have, Nemenyi's critical difference of two at 5 %, and the number of seeds.

    q sqrt(k (k + 1) / (6 n)) for k methods and n seeds, q the studentised range's quantile over sqrt(2) (Demsar, JMLR 2006, section 3.2.2).
    None of fewer than three methods or seeds.
    """
    seeds = sorted(set.intersection(*(set(of) for of in values.values()))) if values else []
    k, n = len(values), len(seeds)
    if k < 3 or n < FEWEST:
        return None
    ranked = np.mean([stats.rankdata([-of[seed] for of in values.values()]) for seed in seeds], axis=0)
    quantile = float(stats.studentized_range.ppf(LEVEL, k, np.inf)) / np.sqrt(2)
    return dict(zip(values, map(float, ranked), strict=True)), float(quantile * np.sqrt(k * (k + 1) / (6 * n))), n


def _shared(method: Mapping[int, float], other: Mapping[int, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    seeds = sorted(method.keys() & other.keys())
    return np.array([method[s] for s in seeds]), np.array([other[s] for s in seeds])


def _corrected(found: Mapping[Key, Difference]) -> dict[Key, Difference]:
    tested = {key: of.t_p for key, of in found.items() if of.t_p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: replace(of, holm=corrected.get(key)) for key, of in found.items()}
