"""The statistics of a bench, on plain sequences of numbers: an interval, an improvement, a test. Nothing here knows what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL, RESAMPLES = 0.95, 9999
Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Summary of n numbers: mean, standard deviation (n - 1), largest, bootstrap interval of the mean; None where n is too small."""

    n: int
    mean: float
    std: float | None
    best: float
    interval: Interval | None


@dataclass(frozen=True)
class Significance:
    """Two-sided p-values of "no difference": of the means under normality (`t_name`), and by ranks (`rank_name`)."""

    t_name: str
    t_p: float
    rank_name: str
    rank_p: float


def summary(values: Sequence[float]) -> Summary:
    """The summary of at least one number.

    >>> summary([1.0, 2.0, 3.0]).std
    1.0
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(np.mean(values)), spread, max(values), mean_interval(values))


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The mean's bootstrap interval (bias-corrected and accelerated, 95 %); None of one number, twice the number of equal ones."""
    if len(values) < 2:
        return None
    if min(values) == max(values):  # there is nothing to resample, and scipy would warn
        return values[0], values[0]
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def relative_improvement(method: float, baseline: float) -> float:
    """RI = 100 (Acc_m - Acc_r) / Acc_r in percent, of means under one protocol (Yang et al., ICLR 2020, arXiv 1912.12522).

    >>> round(relative_improvement(97.23, 96.92), 2)
    0.32
    """
    return 100 * (method - baseline) / baseline


def improvement_interval(
    method: Sequence[float], baseline: Sequence[float], *, paired: bool, seed: int = 0
) -> Interval | None:
    """RI's percentile bootstrap interval; pairs are resampled together. None where either has one number."""
    if min(len(method), len(baseline)) < 2:
        return None
    if min(method) == max(method) and min(baseline) == max(baseline):
        value = relative_improvement(method[0], baseline[0])
        return value, value

    def statistic(m: NDArray[np.float64], r: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        base = np.mean(r, axis=axis)
        improvement: NDArray[np.float64] = 100 * (np.mean(m, axis=axis) - base) / base
        return improvement

    found = stats.bootstrap(
        (method, baseline),
        statistic,
        paired=paired,
        vectorized=True,
        method="percentile",
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def significance(method: Mapping[int, float], baseline: Mapping[int, float]) -> Significance | None:
    """Tests whether two methods differ, from their values by seed; None where either has only one.

    With the same seeds the differences are tested (paired t, Wilcoxon's signed ranks), else the two samples (Welch's t, Mann-Whitney's U).
    """
    if min(len(method), len(baseline)) < 2:
        return None
    if method.keys() != baseline.keys():
        m, r = list(method.values()), list(baseline.values())
        spread = max(m) > min(m) or max(r) > min(r)
        t_p = float(stats.ttest_ind(m, r, equal_var=False).pvalue) if spread else float(m[0] == r[0])
        return Significance("Welch's t", t_p, "Mann-Whitney", float(stats.mannwhitneyu(m, r).pvalue))
    differences = [method[seed] - baseline[seed] for seed in sorted(method)]
    if not any(differences):
        return Significance("paired t", 1.0, "Wilcoxon", 1.0)
    constant = max(differences) - min(differences) <= 1e-12 * max(map(abs, differences))
    t_p = 0.0 if constant else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Significance("paired t", t_p, "Wilcoxon", float(stats.wilcoxon(differences).pvalue))


def ranks(means: Mapping[str, float]) -> dict[str, int]:
    """1 for the largest; equal ones share the better rank.

    >>> ranks({"a": 90.0, "b": 94.0, "c": 90.0})
    {'a': 2, 'b': 1, 'c': 2}
    """
    order = stats.rankdata([-mean for mean in means.values()], method="min")
    return {name: int(rank) for name, rank in zip(means, order, strict=True)}
